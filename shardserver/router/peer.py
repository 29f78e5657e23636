"""One peer process: the two rings between it and us, what we have asked it, and what it reads in our arena.

A request's payload stays in our arena until its answer, so that it can be asked again of the peer's next process. An
answer's buffers stay in the peer's arena until the last view of them is gone here; then a slot gives them back. What
the rings or the arena have no room for waits here, in order, apart by what it may wait for: requests and returns take
only half of a ring's slots, lent answers wait for memory in our arena, and other answers for nothing. That last one
holds because no more requests are out than half of the ring for their answers has slots: an answer that says what is
durable stands in the ring when the next publish shows it. Slots: docs/formats/ring-messages.md.

Sends in the usual case do not come here: the lane (send_lane.pyx) does them alone, and its peer takes over what is late
and what a dead process has left.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from shardserver.errors import ArenaFullError, BackpressureError, CorruptionError, PeerGoneError, ShardServerError
from shardserver.memory.arena import Arena, Block, LentBuffer
from shardserver.router.answers import Answer, Buffer, decode_error, encode_error
from shardserver.router.questions import LENT, Answered, Kind, Loan, Question, Request, ServeRequest, Waiting
from shardserver.router.ring import Consumer, Producer
from shardserver.router.ring_python import INLINE_BYTES, Slot
from shardserver.router.send_lane import SendLane
from shardserver.router.send_lane_python import SentRecord

log = logging.getLogger(__name__)

__all__ = ["LENT", "Answered", "Kind", "Peer", "PeerStatistics", "Question", "Request", "Rings", "ServeRequest"]

DRAIN_SLOTS = 256
LEAST_PIECE_BYTES = 4096
_PART = struct.Struct("<QQ")  # position, length
_BASE = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    number: int
    is_serving: bool
    slots_sent: int
    slots_taken: int
    doorbells: int
    questions: int
    waiting: int
    lent: int


@dataclass(slots=True)
class Rings:
    """What one process of a peer shares with us. arena: its memory, mapped read-only."""

    producer: Producer
    consumer: Consumer
    arena: mmap.mmap
    doorbell: int


class Peer:
    """Lives as long as we do; `attach` and `detach` follow its processes. wake: something is to be published."""

    def __init__(self, number: int, arena: Arena, serve: ServeRequest, wake: Callable[[], None]) -> None:
        self.number, self._arena, self._serve, self._wake = number, arena, serve, wake
        self.generation = 0  # counts its processes
        self.on_hello: Callable[[Peer, bool], None] = lambda peer, serving: None
        self.prepare_repeat: Callable[[Question], None] = lambda question: None
        self.begin_sends: Callable[[], float] = _no_sends
        self.question_of: Callable[[SentRecord], Question] = _no_question
        self._rings: Rings | None = None
        self.questions: dict[int, Question] = {}
        self._asked: set[int] = set()  # numbers that its present process has been given and has not answered
        self._waiting = Waiting()
        self.lane = SendLane(arena, self, self._asked, self._waiting.requests, self._waiting.answers)
        self._lent: dict[int, list[Buffer]] = {}
        self._returned: list[int] = []
        self._doorbells = self._peak_slots = 0

    @property
    def rings(self) -> Rings | None:
        return self._rings

    @rings.setter
    def rings(self, rings: Rings | None) -> None:
        self._rings = rings
        if rings is None:
            self.lane.detach()
        else:
            self.lane.attach(rings.producer, rings.consumer, rings.arena)

    @property
    def is_serving(self) -> bool:
        return self.lane.is_serving

    @is_serving.setter
    def is_serving(self, serving: bool) -> None:
        self.lane.is_serving = serving

    def wake(self) -> None:
        """The lane has something to publish."""
        self._wake()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting) or bool(self._returned)

    # Its processes

    def attach(self, rings: Rings, *, serving: bool) -> None:
        """A new process of the peer. serving: what we say of ourselves."""
        assert self.rings is None
        self.rings = rings
        self.generation += 1
        self.say_hello(serving=serving)

    def say_hello(self, *, serving: bool) -> None:
        if self.rings is not None:
            self._send(self._waiting.answers, partial(self._push, Kind.HELLO, 0, 0, 0, 0, bytes([serving]), False))

    def detach(self) -> None:
        """The peer's process has ended. What it had published counts; what was asked and may be repeated waits."""
        if self.rings is None:
            return
        try:
            while self.drain():
                pass
        except CorruptionError as error:  # what it says from there on counts as not said
            log.error("ring_corrupt", extra={"fields": {"peer": self.number, "error": str(error)}})
        rings, self.rings = self.rings, None
        os.close(rings.doorbell)
        self.take_over(math.inf)
        self._waiting.clear()
        self._returned = []
        self._lent.clear()
        self._asked.clear()
        for question in list(self.questions.values()):
            if not question.was_pushed:
                self._end(question, BackpressureError(f"shard {self.number} is down"))
            elif not question.survives:
                self._end(question, PeerGoneError(f"shard {self.number} died"))

    # Asking

    def ask(self, operation: int, inline: bytes, payload: Buffer | None, done: Answered, *, survives: bool) -> Question:
        """done is called once. Raises BackpressureError: the peer has no process."""
        if self.rings is None:
            raise BackpressureError(f"shard {self.number} is down")
        self.lane.last_number += 1
        given = payload if payload is not None and len(payload) else None
        question = Question(self.lane.last_number, operation, inline, given, done, survives)
        self.questions[question.number] = question
        self._send(self._waiting.requests, partial(self._push_question, question, Kind.REQUEST))
        if not question.was_pushed and question.payload is not None:
            self._wait_with_payload(question, question.payload)
        return question

    def _wait_with_payload(self, question: Question, payload: Buffer) -> None:
        """What lies in the arena may wait there, yet not behind one that waits for room in it: neither would go."""
        is_ours = self._is_ours(payload)
        if is_ours and not self._waiting.for_memory:
            question.block, question.payload = payload, None
            return
        question.payload = bytes(payload) if is_ours else payload
        question.waits_for_memory = True
        self._waiting.for_memory += 1

    def give_up(self, question: Question) -> None:
        """Its answer is of no interest any more. What it names in our arena stays until the answer."""
        question.done = _ignore

    def repeat_questions(self) -> None:
        """Ask the peer's new process what the former one has not answered, in order."""
        for question in list(self.questions.values()):
            if question.was_pushed and question.survives and question.number not in self._asked:
                self.prepare_repeat(question)
                self._send(self._waiting.requests, partial(self._push_question, question, Kind.REPEAT))

    def _push_question(self, question: Question, kind: Kind) -> bool:
        assert self.rings is not None
        if len(self._asked) + self.lane.out >= self.rings.consumer.slots // 2:
            return False
        if question.payload is not None and question.block is None:
            try:
                question.block, question.payload = self._own_block(question.payload), None
            except ArenaFullError:
                return False
            self._waiting.for_memory -= question.waits_for_memory
            question.waits_for_memory = False
        block = question.block
        position, length = (self._arena.position_of(block), len(block)) if block is not None else (0, 0)
        pushed = self._push(kind, question.operation, length, question.number, position, question.inline, True)
        if pushed:
            question.was_pushed = True
            self._asked.add(question.number)
        return pushed

    def _own_block(self, payload: Buffer) -> Buffer:
        """A block of our arena is given away by who asks; what lies elsewhere is copied into one."""
        return payload if self._is_ours(payload) else self._arena.copy(payload)

    def _is_ours(self, payload: Buffer) -> bool:
        return isinstance(payload, Block) and self._arena.position_of(payload) >= 0

    def take_over(self, until: float) -> None:
        """Sends of the lane whose deadline is `until` or before are questions from now on, in order with the others."""
        taken = self.lane.take_sends(until)
        for sent in taken:
            self.questions[sent.number] = self.question_of(sent)
            self._asked.add(sent.number)
        if taken:
            self.questions = dict(sorted(self.questions.items()))

    def _end(self, question: Question, outcome: Answer | ShardServerError) -> None:
        self.questions.pop(question.number, None)
        done, question.done, question.late = question.done, _ignore, None  # no cycle may keep its memory
        question.block = question.payload = None
        try:
            done(outcome)
        except Exception:  # a bug of whoever asked: the slots behind this one were taken, and belong to others
            log.exception("answer_failed", extra={"fields": {"peer": self.number, "operation": question.operation}})

    # Answering

    def _answer(self, rings: Rings, number: int, outcome: Answer | ShardServerError) -> None:
        if self.rings is not rings:
            return  # who asked is gone
        if isinstance(outcome, ShardServerError):
            kind, inline = Kind.ERROR, encode_error(outcome)
        elif sum(map(len, outcome.parts())) <= INLINE_BYTES:
            kind, inline = Kind.ANSWER, outcome.joined()
        else:
            self._send(self._waiting.lent, partial(self._lend, number, outcome))
            return
        self._send(self._waiting.answers, partial(self._push, kind, 0, len(inline), number, 0, inline, False))

    def answer_send(self, number: int, outcome: int | ShardServerError) -> None:
        """For the lane: what it served is refused, or finds no slot."""
        assert self.rings is not None
        answer = outcome if isinstance(outcome, ShardServerError) else Answer(_BASE.pack(outcome))
        self._answer(self.rings, number, answer)

    def _lend(self, number: int, answer: Answer) -> bool:
        """Describe the answer's buffers in our arena; what lies elsewhere is copied into it first."""
        buffers = [part for part in answer.parts() if len(part)]
        elsewhere = sum(len(part) for part in buffers if self._arena.position_of(part) < 0)
        if elsewhere + len(buffers) * _PART.size > self._arena.bytes - self._arena.used_bytes:
            return False  # known before a byte is copied: this is tried again and again
        try:
            kept = [piece for part in buffers for piece in self._in_arena(part)]
            parts = [_PART.pack(self._arena.position_of(piece), len(piece)) for piece in kept]
            table = self._arena.copy(b"".join(parts))
        except ArenaFullError:
            return False
        length = len(parts) * _PART.size
        if not self._push(Kind.ANSWER, LENT, length, number, self._arena.position_of(table), b"", False):
            return False
        self._lent[number] = [table, *kept]
        return True

    def _in_arena(self, part: Buffer) -> Iterator[Buffer]:
        """In pieces where no block of the arena is as large: what is free may lie between what others keep for long."""
        if self._arena.position_of(part) >= 0:
            yield part
            return
        rest, size = memoryview(part), len(part)
        while rest:
            try:
                piece = self._arena.copy(rest[:size])
            except ArenaFullError:
                if size <= LEAST_PIECE_BYTES:
                    raise
                size //= 2
                continue
            yield piece
            rest = rest[size:]

    # The rings

    def _send(self, waiting: deque[Callable[[], bool]], push: Callable[[], bool]) -> None:
        try:
            pushed = not waiting and push()
        except CorruptionError:  # `publish` meets it again, and tells
            pushed = False
        if not pushed:
            waiting.append(push)
        self._wake()

    def _push(
        self, kind: Kind, flags: int, length: int, number: int, position: int, inline: bytes, is_request: bool
    ) -> bool:
        assert self.rings is not None
        pushed = self.rings.producer.try_push(kind, flags, length, number, position, inline, is_request)
        self.lane.slots_sent += pushed
        self.lane.is_publish_due = self.lane.is_publish_due or pushed
        return bool(pushed)

    def publish(self) -> None:
        """Push what waits as far as it goes, show it, and wake the peer if it sleeps."""
        if self.rings is None:
            return
        self._push_returned()
        for waiting in (self._waiting.answers, self._waiting.lent, self._waiting.requests):
            while waiting and waiting[0]():
                waiting.popleft()
        producer = self.rings.producer
        self._peak_slots = max(self._peak_slots, producer.slots - producer.free_slots())
        if self.lane.publish():
            self._doorbells += 1
            os.eventfd_write(self.rings.doorbell, 1)

    def _push_returned(self) -> None:
        while self._returned:
            number = self._returned.pop()  # first: while we push, another loan may end
            if not self._push(Kind.RETURN, 0, 0, number, 0, b"", True):
                self._returned.append(number)
                return

    def drain(self, limit: int = DRAIN_SLOTS) -> int:
        """Take up to `limit` slots and act on them; gives their number."""
        if self.rings is None:
            return 0
        taken = self.lane.drain(limit)
        if taken and self._waiting:  # an answer or a return may be what the first of them waits for
            self._wake()
        return taken

    def take(self, slot: Slot) -> None:
        """Act on a slot that the lane leaves to us."""
        kind, flags, length, number, position, inline = slot
        rings = self.rings
        if rings is None:
            return
        if kind in (Kind.REQUEST, Kind.REPEAT):
            payload = self._view(rings, position, length)
            request = Request(self.number, flags, inline, payload, kind == Kind.REPEAT, self.generation)
            self._serve(request, partial(self._answer, rings, number))
        elif kind in (Kind.ANSWER, Kind.ERROR):
            self._asked.discard(number)
            question = self.questions.get(number)
            if question is not None:
                self._end(question, self._outcome(rings, slot))
        elif kind == Kind.RETURN:
            self._lent.pop(number, None)
        elif kind == Kind.HELLO:
            self.on_hello(self, bool(inline[0]))
        else:
            raise CorruptionError("ring", position, f"a slot of a known kind, found {kind}")

    def _outcome(self, rings: Rings, slot: Slot) -> Answer | ShardServerError:
        kind, flags, length, number, position, inline = slot
        if kind == Kind.ERROR:
            return decode_error(inline[:length])
        if not flags & LENT:
            return Answer(inline[:length])
        table = self._view(rings, position, length)
        if length % _PART.size:
            raise CorruptionError("arena", position, f"a table of {_PART.size} bytes an entry, found {length} bytes")
        loan = Loan(number, self._returned, self._wake)
        parts = [LentBuffer(rings.arena, at, size, loan) for at, size in _PART.iter_unpack(table)]
        return Answer(b"", [memoryview(part) for part in parts], loan)

    def _view(self, rings: Rings, position: int, length: int) -> memoryview:
        if position + length > len(rings.arena):
            raise CorruptionError("arena", position, f"a payload inside {len(rings.arena)} bytes")
        return memoryview(rings.arena)[position : position + length]

    def take_peak_slots(self) -> int:
        """The most slots of the ring to the peer that were in use at a publish, since the last call."""
        peak, self._peak_slots = self._peak_slots, 0
        return peak

    def statistics(self) -> PeerStatistics:
        return PeerStatistics(
            self.number,
            self.is_serving,
            self.lane.slots_sent,
            self.lane.slots_taken,
            self._doorbells,
            len(self.questions) + self.lane.out,
            len(self._waiting),
            len(self._lent),
        )


def _ignore(outcome: Answer | ShardServerError, /) -> None:
    """For an answer that nobody waits for."""


def _no_sends() -> float:
    raise AssertionError("a send without an owner")


def _no_question(sent: SentRecord, /) -> Question:
    raise AssertionError("a send without an owner")
