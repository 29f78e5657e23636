"""The partitions of another shard, asked over the rings: the same calls as LocalOwner.

While its process is down nothing new is handed over (58). What was handed over waits for the next process and is
asked again, marked as a repeat, with a floor: answers of one partition come in offset order, so all that we have seen
answered lies below it. After ANSWER_DEADLINE_S a client gets 57; a send of its goes on, and an identical frame of the
connection joins it (decisions of the failure model: docs/architecture.md, "When a shard dies").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import xxhash

from shardserver.core.calls import U64, CutCall, OffsetCall, Operation, PollCall, SendCall
from shardserver.core.local_owner import Buffers, SendDone
from shardserver.errors import BackpressureError, NotCommittedError, ShardServerError
from shardserver.memory.arena import Block
from shardserver.router.answers import Answer
from shardserver.router.peer import Answered, Peer, Question
from shardserver.router.send_lane import RemotePartition
from shardserver.router.send_lane_python import SentRecord

ANSWER_DEADLINE_S = 20.0
UNANSWERED_KEPT = 64
# A client repeats a frame within 30 s or not at all: after that an identical one is a new send.
OUTCOME_KEPT_S = 60.0

Identity = tuple[int, bytes]
OnLate = Callable[[Question], None]


class SendAttempt:
    """A send handed over. `waiter`: the client's request that is answered by it; None after 57.

    identity: of its frame, once it was answered 57. ended_at: when its outcome came, by the owner's clock.
    """

    def __init__(self, waiter: SendDone) -> None:
        self.waiter: SendDone | None = waiter
        self.outcome: int | ShardServerError | None = None
        self.identity: Identity | None = None
        self.ended_at = 0.0

    def end(self, outcome: int | ShardServerError, now: float) -> None:
        self.outcome, self.ended_at = outcome, now
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter(outcome)


Unanswered = list[SendAttempt]


class RemoteOwner:
    """One peer as owner."""

    def __init__(self, peer: Peer, clock: Callable[[], float]) -> None:
        self.peer, self._clock = peer, clock
        self._timer: asyncio.TimerHandle | None = None
        peer.prepare_repeat = self._prepare_repeat
        peer.begin_sends, peer.question_of = self._new_deadline, self._question_of

    def _prepare_repeat(self, question: Question) -> None:
        if question.operation == Operation.SEND:
            call = SendCall.decode(question.inline)
            question.inline = SendCall(call.uid, call.count, self.peer.lane.floor(call.uid).offset).encode()

    def _ask(
        self,
        operation: Operation,
        inline: bytes,
        payload: Any,
        done: Answered,
        on_late: OnLate,
    ) -> Question:
        if not self.peer.is_serving:
            raise BackpressureError(f"shard {self.peer.number} is down or recovers")
        question = self.peer.ask(operation, inline, payload, done, survives=True)
        question.late, question.deadline = partial(on_late, question), self._new_deadline()
        return question

    def _new_deadline(self) -> float:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ANSWER_DEADLINE_S, self._end_late)
        return self._clock() + ANSWER_DEADLINE_S

    def _end_late(self) -> None:
        """The oldest first, as the peer keeps them. One timer for all, set anew for the first that still waits."""
        self._timer = None
        self.peer.take_over(self._clock())
        first = self.peer.lane.first_deadline()
        for question in list(self.peer.questions.values()):
            if question.late is None:
                continue
            if question.deadline > self._clock():
                first = question.deadline if first is None else min(first, question.deadline)
                break
            late, question.late = question.late, None
            late()
        if first is not None:
            if self._timer is not None:  # of one that was asked meanwhile, and waits longer
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(first - self._clock(), self._end_late)

    # Sends

    def target(self, uid: int, unanswered: Unanswered) -> RemotePartition:
        """A partition of this owner for the sends of one connection. unanswered: as in send."""
        return self.peer.lane.partition(uid, unanswered, self._send_otherwise)

    def _send_otherwise(self, partition: RemotePartition, batch: Block, count: int, done: SendDone) -> None:
        self.send(SendCall(partition.uid, count), batch, done, partition.unanswered)

    def send(self, call: SendCall, batch: Any, done: SendDone, unanswered: Unanswered) -> None:
        """unanswered: sends of the connection that were answered 57. Raises BackpressureError."""
        if unanswered and self._joined(_identity(call.uid, batch), done, unanswered):
            return
        answered, late = self._attempt(call, done, unanswered)
        self._ask(Operation.SEND, call.encode(), batch, answered, late)

    def _attempt(self, call: SendCall, done: SendDone, unanswered: Unanswered) -> tuple[Answered, OnLate]:
        """What becomes of a send: when it is answered, and when it is late."""
        attempt = SendAttempt(done)

        def answered(outcome: Answer | ShardServerError) -> None:
            if isinstance(outcome, ShardServerError):
                attempt.end(outcome, self._clock())
                return
            base, floor = int(U64.unpack(outcome.inline)[0]), self.peer.lane.floor(call.uid)
            floor.offset = max(floor.offset, base + call.count)
            attempt.end(base, self._clock())

        def late(question: Question) -> None:
            attempt.identity = _identity(call.uid, question.block or question.payload)
            unanswered.append(attempt)
            self._tell_late(attempt)

        return answered, late

    def _question_of(self, sent: SentRecord) -> Question:
        """A send that the lane has made, from when it is late or its process is dead."""
        partition = sent.partition
        call = SendCall(partition.uid, sent.messages)
        answered, late = self._attempt(call, sent.done, partition.unanswered)
        question = Question(sent.number, Operation.SEND, call.encode(), None, answered, survives=True)
        question.block, question.was_pushed = sent.batch, True
        question.late, question.deadline = partial(late, question), sent.deadline
        return question

    def _tell_late(self, attempt: SendAttempt) -> None:
        waiter, attempt.waiter = attempt.waiter, None
        if waiter is not None:
            waiter(NotCommittedError(f"no answer of shard {self.peer.number} in {ANSWER_DEADLINE_S:g} s"))

    def _joined(self, identity: Identity, done: SendDone, unanswered: Unanswered) -> bool:
        """A frame that was answered 57 comes again: each of those answers is followed by one such frame at most.

        Raises BackpressureError.
        """
        oldest = self._clock() - OUTCOME_KEPT_S
        unanswered[:] = [one for one in unanswered if one.outcome is None or one.ended_at > oldest]
        attempt = next((one for one in unanswered if one.waiter is None and one.identity == identity), None)
        if attempt is not None:
            self._join(attempt, done, unanswered)
        elif len(unanswered) >= UNANSWERED_KEPT:
            raise BackpressureError("too many sends of this connection wait for their shard")
        return attempt is not None

    def _join(self, attempt: SendAttempt, done: SendDone, unanswered: Unanswered) -> None:
        def ended(outcome: int | ShardServerError) -> None:
            if not isinstance(outcome, NotCommittedError):
                unanswered.remove(attempt)
            done(outcome)

        if attempt.outcome is not None:
            ended(attempt.outcome)
            return
        attempt.waiter = ended
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


def _identity(uid: int, batch: Any) -> Identity:
    return uid, xxhash.xxh3_128_digest(batch)
