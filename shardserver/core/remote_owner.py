"""The partitions of another shard, asked over the rings: the same calls as LocalOwner.

While its process is down nothing new is handed over (58). What was handed over waits for the next process and is
asked again, marked as a repeat, with a floor: answers of one partition come in offset order, so all that we have seen
answered lies below it. After ANSWER_DEADLINE_S a client gets 57; a send of its goes on, and an identical frame of the
connection joins it (decisions of the failure model: docs/architecture.md, "When a shard dies").
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import xxhash

from shardserver.core.calls import U64, CutCall, OffsetCall, Operation, PollCall, SendCall
from shardserver.core.local_owner import Buffers, SendDone
from shardserver.errors import BackpressureError, NotCommittedError, ShardServerError
from shardserver.router.answers import Answer
from shardserver.router.peer import Peer, Question

ANSWER_DEADLINE_S = 20.0
UNANSWERED_KEPT = 64


class SendAttempt:
    """A send handed over. `waiter`: the client's request that is answered by it; None after 57."""

    def __init__(self, waiter: SendDone) -> None:
        self.waiter: SendDone | None = waiter
        self.outcome: int | ShardServerError | None = None

    def end(self, outcome: int | ShardServerError) -> None:
        self.outcome = outcome
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter(outcome)

    def join(self, waiter: SendDone) -> None:
        """An identical frame: its answer is that of the first."""
        if self.outcome is not None:
            waiter(self.outcome)
        else:
            self.waiter = waiter


Unanswered = dict[tuple[int, bytes], SendAttempt]


class RemoteOwner:
    """One peer as owner."""

    def __init__(self, peer: Peer, clock: Callable[[], float]) -> None:
        self.peer, self._clock = peer, clock
        self._floors: dict[int, int] = {}
        self._deadlines: deque[tuple[float, int]] = deque()  # numbers only: an answer must not live on here
        self._timer: asyncio.TimerHandle | None = None
        peer.prepare_repeat = self._prepare_repeat

    def _prepare_repeat(self, question: Question) -> None:
        if question.operation == Operation.SEND:
            call = SendCall.decode(question.inline)
            question.inline = SendCall(call.uid, call.count, self._floors.get(call.uid, 0)).encode()

    def _ask(
        self,
        operation: Operation,
        inline: bytes,
        payload: Any,
        done: Callable[[Answer | ShardServerError], None],
        on_late: Callable[[Question], None],
    ) -> Question:
        if not self.peer.is_serving:
            raise BackpressureError(f"shard {self.peer.number} is down or recovers")
        question = self.peer.ask(operation, inline, payload, done, survives=True)
        question.late = partial(on_late, question)
        self._deadlines.append((self._clock() + ANSWER_DEADLINE_S, question.number))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ANSWER_DEADLINE_S, self._end_late)
        return question

    def _end_late(self) -> None:
        """The oldest first. One timer for all: it is set anew for the first that still waits."""
        self._timer = None
        while self._deadlines:
            deadline, number = self._deadlines[0]
            question = self.peer.questions.get(number)
            if question is not None and question.late is not None:
                if deadline > self._clock():
                    wait_s = deadline - self._clock()
                    self._timer = asyncio.get_running_loop().call_later(wait_s, self._end_late)
                    return
                late, question.late = question.late, None
                late()
            self._deadlines.popleft()

    # Sends

    def send(self, call: SendCall, batch: Any, done: SendDone, unanswered: Unanswered) -> None:
        """unanswered: sends of the connection that were answered 57. Raises BackpressureError."""
        if unanswered:
            attempt = unanswered.get(_identity(call.uid, batch))
            if attempt is not None:
                self._join(call.uid, batch, attempt, done, unanswered)
                return
            if len(unanswered) >= UNANSWERED_KEPT:
                raise BackpressureError("too many sends of this connection wait for their shard")
        attempt = SendAttempt(done)

        def answered(outcome: Answer | ShardServerError) -> None:
            if isinstance(outcome, ShardServerError):
                attempt.end(outcome)
                return
            base = int(U64.unpack(outcome.inline)[0])
            self._floors[call.uid] = max(self._floors.get(call.uid, 0), base + call.count)
            attempt.end(base)

        def late(question: Question) -> None:
            unanswered[_identity(call.uid, question.block or question.payload)] = attempt
            self._tell_late(attempt)

        self._ask(Operation.SEND, call.encode(), batch, answered, late)

    def _tell_late(self, attempt: SendAttempt) -> None:
        waiter, attempt.waiter = attempt.waiter, None
        if waiter is not None:
            waiter(NotCommittedError(f"no answer of shard {self.peer.number} in {ANSWER_DEADLINE_S:g} s"))

    def _join(self, uid: int, batch: Any, attempt: SendAttempt, done: SendDone, unanswered: Unanswered) -> None:
        key = _identity(uid, batch)
        if attempt.outcome is not None:
            del unanswered[key]
            attempt.join(done)
            return

        def ended(outcome: int | ShardServerError) -> None:
            if not isinstance(outcome, NotCommittedError):
                unanswered.pop(key, None)
            done(outcome)

        attempt.join(ended)
        asyncio.get_running_loop().call_later(ANSWER_DEADLINE_S, self._tell_late, attempt)

    # All others

    def _request(self, operation: Operation, inline: bytes, payload: Any = None) -> asyncio.Future[Answer]:
        """The answer, an error of the peer, or 57 when it is late."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(outcome: Answer | ShardServerError) -> None:
            if future.done():
                return
            if isinstance(outcome, ShardServerError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        def late(question: Question) -> None:
            self.peer.give_up(question)
            answered(NotCommittedError(f"no answer of shard {self.peer.number} in {ANSWER_DEADLINE_S:g} s"))

        self._ask(operation, inline, payload, answered, late)
        return future

    async def poll(self, call: PollCall) -> Buffers:
        return (await self._request(Operation.POLL, call.encode())).parts()

    async def get_offset(self, call: OffsetCall) -> tuple[int, int | None]:
        raw = (await self._request(Operation.GET_OFFSET, call.encode())).inline
        current, stored = U64.unpack_from(raw)[0], U64.unpack_from(raw, 8)[0]
        return current, stored if raw[16] else None

    async def store_offset(self, call: OffsetCall) -> None:
        await self._request(Operation.STORE_OFFSET, call.encode())

    async def delete_offset(self, call: OffsetCall) -> None:
        await self._request(Operation.DELETE_OFFSET, call.encode())

    async def find_cut(self, call: CutCall) -> int:
        return int(U64.unpack((await self._request(Operation.FIND_CUT, call.encode())).inline)[0])

    async def cut(self, call: CutCall) -> None:
        await self._request(Operation.CUT, call.encode())

    async def control(self, operation: Operation, payload: bytes) -> bytes:
        """A control request that may be asked again; gives a copy of the answer."""
        return (await self._request(operation, b"", payload or None)).joined()


def _identity(uid: int, batch: Any) -> tuple[int, bytes]:
    return uid, xxhash.xxh3_128_digest(batch)
