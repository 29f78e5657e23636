"""What a partition's log does for each batch, in plain Python: the specification of append_log.pyx. No server runs it.

Each batch is queued without an offset, stamped when the journal write or run that carries it is built, and confirmed
when it is as durable as its topic says. Under `memory` it is stamped and confirmed at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shardserver.errors import NotOwnerError, ShardServerError, StorageError
from shardserver.memory.buffers import WritableBuffer
from shardserver.protocol.batch_python import stamp_batch
from shardserver.storage import journal_format as fmt
from shardserver.storage.resources import LogResources
from shardserver.storage.settings import Durability, PartitionIdentity
from shardserver.storage.staging import Staging
from shardserver.storage.tail_python import Tail, TailEntry, TailTotal

MAX_GATHER_BYTES, BACKLOG_LIMIT_BYTES = 8 << 20, 64 << 20
IDLE, FLUSH, DIRECT = range(3)

AppendDone = Callable[[int | ShardServerError], None]


class Wakers(Protocol):
    def wake(self, log: AppendLog) -> None: ...
    def keep_cached(self, log: AppendLog) -> None: ...


@dataclass(slots=True)
class Waiting:
    batch: WritableBuffer
    count: int
    done: AppendDone


@dataclass(slots=True)
class Ack:
    base: int
    end: int
    done: AppendDone


class AppendLog:
    """The fields are those of append_log.pyx."""

    def __init__(self, resources: LogResources, identity: PartitionIdentity, wakers: Wakers, total: TailTotal) -> None:
        self._resources, self._settings = resources, resources.settings
        self.identity, self._wakers, self._total = identity, wakers, total
        self.tail = Tail(total)
        self._waiting: deque[Waiting] = deque()
        self._acks: deque[Ack] = deque()
        self._is_cached = False
        self.waiting_bytes = self.backlog_bytes = 0
        self.next_offset = self.journaled_end = self.durable_end = self.written_end = self.flushed_end = 0
        self.last_timestamp = 0
        self.fenced: ShardServerError | None = None
        self.refusal: NotOwnerError | None = None
        self.running = IDLE
        self.is_late = False

    @property
    def uid(self) -> int:
        return self.identity.uid

    # Appends

    def append(self, batch: WritableBuffer, count: int, done: AppendDone) -> None:
        refusal = self.refusal or self.fenced or self._resources.admission.refusal
        if refusal is not None:
            done(refusal)
            return
        if self.is_memory:
            self._acknowledge_later(self._stamp(batch, count, self._resources.clock()), done)
            self.release_acks()
        else:
            self._waiting.append(Waiting(batch, count, done))
            self.waiting_bytes += len(batch)
        self._wakers.wake(self)

    def _stamp(self, batch: WritableBuffer, count: int, now: int) -> TailEntry:
        self.last_timestamp = max(self.last_timestamp, now)
        stamp_batch(batch, self.identity.partition_id, self.next_offset, self.last_timestamp)
        entry = TailEntry(self.next_offset, count, self.last_timestamp, batch)
        self.tail.append(entry)
        self.next_offset += count
        self.backlog_bytes += len(batch)
        return entry

    def _acknowledge_later(self, entry: TailEntry, done: AppendDone) -> None:
        self._acks.append(Ack(entry.base_offset, entry.end_offset, done))

    def _stamp_first(self, now: int) -> TailEntry:
        one = self._waiting.popleft()
        self.waiting_bytes -= len(one.batch)
        entry = self._stamp(one.batch, one.count, now)
        self._acknowledge_later(entry, one.done)
        return entry

    def stamp_waiting(self, least_bytes: int) -> None:
        stop = self.backlog_bytes + least_bytes
        while self._waiting and self.backlog_bytes < stop:
            self._stamp_first(self._resources.clock())

    def take_back(self, entry: TailEntry) -> None:
        self.tail.append(entry)
        self.last_timestamp = max(self.last_timestamp, entry.timestamp)
        self.next_offset = self.journaled_end = self.durable_end = self.written_end = entry.end_offset

    def note_flushed(self, end: int) -> None:
        self.flushed_end = end
        if not self._is_cached:
            self._is_cached = True
            self._wakers.keep_cached(self)

    def replace_tail(self) -> Tail:
        old = self.tail
        old.leave_total()
        self.tail = Tail(self._total)
        return old

    # What waits, and for what

    @property
    def unanswered(self) -> int:
        """Appends whose caller has been told nothing yet."""
        return len(self._waiting) + len(self._acks)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def has_work(self) -> bool:
        return self.fenced is None and (bool(self._waiting) or self.journaled_end < self.next_offset)

    @property
    def is_memory(self) -> bool:
        return self.identity.durability is Durability.MEMORY

    @property
    def high_watermark(self) -> int:
        if self.identity.durability is Durability.FSYNC:
            return self.durable_end
        return self.written_end if self.identity.durability is Durability.WRITE else self.next_offset

    @property
    def unwritten_bytes(self) -> int:
        return self.waiting_bytes + self.backlog_bytes

    @property
    def is_due(self) -> bool:
        if self.fenced is not None:
            return False
        if not self.is_memory:
            return bool(self._waiting) or self.backlog_bytes >= self._settings.max_write_bytes
        if self.running:
            return False
        if self.is_late and self.journaled_end < self.next_offset:
            return True
        gathered = self.next_offset - self.journaled_end
        return self.backlog_bytes >= self._gather_bytes or 0 < self.identity.save_messages <= gathered

    @property
    def _gather_bytes(self) -> int:
        return min(self.identity.save_bytes or MAX_GATHER_BYTES, self._settings.flush_run_bytes)

    @property
    def wants_run(self) -> bool:
        if self.running or self.fenced is not None:
            return False
        least = self._settings.direct_bytes
        return self.unwritten_bytes >= (
            max(least, self._gather_bytes) if self.is_memory and not self.is_late else least
        )

    @property
    def first_is_oversize(self) -> bool:
        most = self._settings.max_write_bytes - fmt.WRITE_HEADER_BYTES - fmt.RECORD_HEADER_BYTES
        return bool(self._waiting) and len(self._waiting[0].batch) > most

    @property
    def waits_for_run(self) -> bool:
        if not self.running:
            return False
        return self.running == DIRECT or self.is_memory or self.first_is_oversize

    def recount_backlog(self) -> None:
        self.backlog_bytes = self.tail.bytes_from(self.journaled_end)

    # Into the journal

    def journal_into(self, staging: Staging, shard: int, sequence: int) -> int:
        if self.running == DIRECT or self.fenced is not None or (self.is_memory and self.running):
            return -1
        before = self.journaled_end
        for entry in list(self.tail.from_offset(before)) if before < self.next_offset else ():
            if not staging.fits(len(entry.data)):
                break
            self._journal_entry(entry, staging, shard, sequence)
        if self.journaled_end == self.next_offset and self._waiting:
            now = self._resources.clock()
            while self._waiting and staging.fits(len(self._waiting[0].batch)):
                self._journal_entry(self._stamp_first(now), staging, shard, sequence)
        return self.journaled_end if self.journaled_end > before else -1

    def _journal_entry(self, entry: TailEntry, staging: Staging, shard: int, sequence: int) -> None:
        staging.add(fmt.KIND_BATCH, 0, shard, self.uid, self.identity.term, entry.data)
        entry.sequence = sequence
        self.journaled_end = entry.end_offset
        self.backlog_bytes -= len(entry.data)

    # Answers

    def note_written(self, end: int) -> None:
        self.written_end = max(self.written_end, end)
        self.release_acks()

    def note_durable(self, end: int) -> None:
        self.durable_end = max(self.durable_end, end)
        self.written_end = max(self.written_end, end)
        self.release_acks()

    def release_acks(self) -> None:
        visible = self.high_watermark
        if self.is_memory and self.backlog_bytes > BACKLOG_LIMIT_BYTES:
            visible = self.written_end
        while self._acks and self._acks[0].end <= visible:
            ack = self._acks.popleft()
            ack.done(ack.base)

    def fail_waiting(self, error: ShardServerError) -> None:
        waiting, self._waiting, self.waiting_bytes = self._waiting, deque(), 0
        for one in waiting:
            one.done(error)

    def fence_after_bug(self, what: str, error: Exception) -> None:
        """What failed, and how: nobody knows what is half changed."""
        self.fence(StorageError(f"{what} failed inside the server: {error!r}"))

    def fence(self, error: ShardServerError) -> None:
        self.fenced = error
        self.fail_waiting(error)
        acks, self._acks = self._acks, deque()
        for ack in acks:
            ack.done(error)

    def roll_back(self, offset: int, error: StorageError) -> None:
        self.tail.cut_from(offset)
        self.next_offset = offset
        refused = [ack for ack in self._acks if ack.end > offset]
        self._acks = deque(ack for ack in self._acks if ack.end <= offset)
        for ack in refused:
            ack.done(error)
