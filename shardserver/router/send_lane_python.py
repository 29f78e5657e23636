"""The lane of sends in plain Python: the specification of `send_lane.pyx`. Slots: docs/formats/ring-messages.md.

It does the usual case of a send alone; all else is the peer's (peer.py), which it asks by these methods:
`take(slot)`, `answer_send(number, base offset or error)`, `begin_sends()` -> the deadline of sends from now on,
`wake()`: something is to be published.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from shardserver.errors import ArenaFullError, CorruptionError, ShardServerError, StorageError
from shardserver.memory.arena import Arena, Block
from shardserver.protocol.sends import Target
from shardserver.router.answers import decode_error
from shardserver.router.ring import Consumer, Producer
from shardserver.router.ring_python import Slot

log = logging.getLogger(__name__)

DRAIN_SLOTS = 256
REQUEST, ANSWER, ERROR = 2, 4, 5  # kinds
SEND = 1  # operation
SEND_INLINE = struct.Struct("<QIQ")  # uid, count, floor
_BASE = struct.Struct("<Q")

SendDone = Callable[[int | ShardServerError], None]
# What the lane does not do: (partition, batch, count, done). Raises ShardServerError.
SendOtherwise = Callable[[Any, Block, int, SendDone], None]


class SentRecord(NamedTuple):
    """A send that the peer takes over. deadline: by the clock of begin_sends. done: tells who waits."""

    number: int
    deadline: float
    partition: Any
    messages: int
    batch: Block
    done: SendDone


@dataclass(slots=True)
class Floor:
    """offset: one above the highest of a partition that we have seen answered."""

    offset: int = 0


class RemotePartition:
    """A partition of the peer, as the target of one connection's sends.

    unanswered: sends of the connection that were answered 57; while there are some, each new one is compared with them.
    """

    def __init__(
        self, lane: SendLane, uid: int, floor: Floor, unanswered: list[Any], send_otherwise: SendOtherwise
    ) -> None:
        self._lane, self.uid, self.floor, self.unanswered = lane, uid, floor, unanswered
        self._send_otherwise = send_otherwise

    def send(self, batch: Block, count: int, done: SendDone) -> None:
        if self.unanswered or not self._lane.try_send(batch, count, self, done):
            self._send_otherwise(self, batch, count, done)


class SendLane:
    """Owned by its peer. asked, waiting_requests, waiting_answers: the peer's, looked at for their lengths.

    find_target(uid) -> Target | None: where sends of the peer go; None: the peer's `serve` has to look.
    """

    def __init__(
        self, arena: Arena, peer: Any, asked: set[int], waiting_requests: Sized, waiting_answers: Sized
    ) -> None:
        self._arena, self._peer, self._asked = arena, peer, asked
        self._waiting_requests, self._waiting_answers = waiting_requests, waiting_answers
        self.find_target: Callable[[int], Target | None] | None = None
        self.is_serving = self.is_publish_due = False
        self.last_number = self.slots_sent = self.slots_taken = 0
        self._sent: dict[int, SentRecord] = {}
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._shown: Any = b""
        self._deadline: float | None = None
        self._floors: dict[int, Floor] = {}
        self._loads: dict[int, list[int]] = {}

    @property
    def out(self) -> int:
        """Sends that are here: pushed and not answered."""
        return len(self._sent)

    # The peer's processes

    def attach(self, producer: Producer, consumer: Consumer, shown: Any) -> None:
        assert not self._sent
        self._producer, self._consumer, self._shown = producer, consumer, shown
        self.is_publish_due, self._deadline = False, None

    def detach(self) -> None:
        self.is_serving, self._producer, self._consumer, self._shown = False, None, None, b""

    # Sends that go there

    def floor(self, uid: int) -> Floor:
        """Of a partition of the peer."""
        return self._floors.setdefault(uid, Floor())

    def partition(self, uid: int, unanswered: list[Any], send_otherwise: SendOtherwise) -> RemotePartition:
        """A target for the sends of one connection; arguments as of RemotePartition."""
        return RemotePartition(self, uid, self.floor(uid), unanswered, send_otherwise)

    def try_send(self, batch: Block, count: int, to: RemotePartition, done: SendDone) -> bool:
        """False: something is in the way, and nothing was done. Bounds as peer.py: what waits goes first, and no more
        requests are out than half of the ring for their answers has slots.
        """
        position = self._arena.position_of(batch)
        if self._producer is None or self._consumer is None or not self.is_serving or position < 0:
            return False
        if len(self._sent) + len(self._asked) >= self._consumer.slots // 2 or len(self._waiting_requests):
            return False
        if self._deadline is None:
            self._deadline = float(self._peer.begin_sends())
        inline = SEND_INLINE.pack(to.uid, count, 0)
        if not self._try_push(REQUEST, SEND, len(batch), self.last_number + 1, position, inline, True):
            return False
        self.last_number += 1
        self._sent[self.last_number] = SentRecord(self.last_number, self._deadline, to, count, batch, done)
        self._pushed()
        return True

    def _try_push(self, *slot: Any) -> bool:
        assert self._producer is not None
        try:
            return self._producer.try_push(*slot)
        except CorruptionError:  # the peer does it otherwise, and meets it again when it publishes
            return False

    def _pushed(self) -> None:
        self.slots_sent += 1
        if not self.is_publish_due:
            self.is_publish_due = True
            self._peer.wake()

    def take_sends(self, until: float) -> list[SentRecord]:
        """Those whose deadline is `until` or before, in order: they are the peer's from now on."""
        taken = [sent for sent in self._sent.values() if sent.deadline <= until]
        for sent in taken:
            del self._sent[sent.number]
        return taken

    def first_deadline(self) -> float | None:
        """Of the sends that are here; None: there are none."""
        return min((sent.deadline for sent in self._sent.values()), default=None)

    # What comes

    def has_slots(self) -> bool:
        """Something came. True also when the ring is corrupt: taking meets it."""
        try:
            return self._consumer is not None and self._consumer.waiting() > 0
        except CorruptionError:
            return True

    def try_park(self) -> bool:
        """False: something came meanwhile, or the ring is corrupt."""
        try:
            return self._consumer is None or self._consumer.try_park()
        except CorruptionError:
            return False

    def unpark(self) -> None:
        if self._consumer is not None:
            self._consumer.unpark()

    def drain(self, limit: int) -> int:
        """Take up to `limit` slots, at most 256, and act on them; gives their number."""
        if self._consumer is None:
            return 0
        slots = self._consumer.take(min(limit, DRAIN_SLOTS))
        self.slots_taken += len(slots)
        for slot in slots:
            if not self._take(slot):
                self._peer.take(slot)
        return len(slots)

    def _take(self, slot: Slot) -> bool:
        """False: it is the peer's to take."""
        kind, flags = slot[:2]
        if kind in (ANSWER, ERROR):
            return self._end_send(slot)
        return kind == REQUEST and flags == SEND and self._serve_send(slot)

    def _end_send(self, slot: Slot) -> bool:
        kind, flags, length, number, _, inline = slot
        sent = self._sent.get(number)
        if sent is None:
            return False
        outcome: int | ShardServerError
        if kind == ERROR:
            outcome = decode_error(inline[:length])
        elif flags or length != _BASE.size:
            raise CorruptionError("ring", number, f"a base offset in the answer of a send, found {length} bytes")
        else:
            outcome = int(_BASE.unpack_from(inline)[0])
            sent.partition.floor.offset = max(sent.partition.floor.offset, outcome + sent.messages)
        del self._sent[number]
        try:
            sent.done(outcome)
        except Exception:  # a bug of whoever waits: the slots behind this one were taken, and belong to others
            log.exception("answer_failed", extra={"fields": {"peer": self._peer.number, "operation": SEND}})
        return True

    # Sends that come from there

    def _serve_send(self, slot: Slot) -> bool:
        """The shard of the connection has verified the batch, and nobody writes in its arena but itself."""
        _, _, length, number, position, inline = slot
        if not length or position + length > len(self._shown) or self.find_target is None:
            return False
        uid, count, _ = SEND_INLINE.unpack_from(inline)
        target = self.find_target(uid)
        if target is None:
            return False
        try:
            batch = self._arena.copy(memoryview(self._shown)[position : position + length])
        except ArenaFullError:  # the peer's `serve` makes room, or refuses
            return False
        self._count_load(uid, length)
        assert self._producer is not None
        done = partial(self._answer, self._producer, number)
        try:
            target.send(batch, count, done)
        except ShardServerError as refusal:
            done(refusal)
        except Exception as error:  # a bug: who asked is told of it, and others are served
            log.exception("send_failed", extra={"fields": {"partition": uid}})
            done(StorageError(f"a send failed inside the server: {error!r}"))
        return True

    def _count_load(self, uid: int, size: int) -> None:
        load = self._loads.setdefault(uid, [0, 0])
        load[0] += 1
        load[1] += size

    def take_loads(self) -> list[tuple[int, int, int]]:
        """[(uid, requests, bytes)] that the peer has sent since the last call."""
        loads, self._loads = self._loads, {}
        return [(uid, requests, size) for uid, (requests, size) in loads.items()]

    def _answer(self, producer: Producer, number: int, outcome: int | ShardServerError) -> None:
        if producer is not self._producer:
            return  # who asked is gone
        if isinstance(outcome, ShardServerError) or len(self._waiting_answers):
            self._peer.answer_send(number, outcome)
        elif self._try_push(ANSWER, 0, _BASE.size, number, 0, _BASE.pack(outcome), False):
            self._pushed()
        else:
            self._peer.answer_send(number, outcome)

    def publish(self) -> bool:
        """Show what was pushed. True: the peer sleeps, and its doorbell has to be rung."""
        self._deadline = None
        if not self.is_publish_due:
            return False
        self.is_publish_due = False
        assert self._producer is not None
        return self._producer.publish()
