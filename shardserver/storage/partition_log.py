"""One partition's log: its runs, its segments on disk, and what recovery brings back. Its appends: append_log.pyx.

At most one run (flush or direct) of a partition is in flight, or a new segment is being made for one; while a direct
one is, nothing of the partition goes to the journal (storage rule 3).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from shardserver.errors import (
    ArenaFullError,
    CorruptionError,
    DiskFullError,
    NotOwnerError,
    StorageError,
)
from shardserver.memory.buffers import WritableBuffer
from shardserver.storage import segment as seg
from shardserver.storage.append_log import Running
from shardserver.storage.deleted_segments import DeletedSegments
from shardserver.storage.event_rate import EventRate
from shardserver.storage.flush import FlushWrite, flush_group
from shardserver.storage.gather import build_run
from shardserver.storage.identity_file import read_identity, write_identity
from shardserver.storage.index import write_index
from shardserver.storage.new_segments import NewSegment, make_segments
from shardserver.storage.partition_directory import remove_other_segments
from shardserver.storage.partition_reader import PartitionReader
from shardserver.storage.partition_state import PartitionState
from shardserver.storage.resources import LogResources
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.synced_write import cut_synced
from shardserver.storage.tail import Tail, TailEntry
from shardserver.storage.turn import Turn

log = logging.getLogger(__name__)

# How much an active segment grows between two writings of its index, and from what size on an index is worth a file.
INDEX_SAVE_BYTES, INDEX_WORTH_BYTES = 64 << 20, 1 << 20
CUT_TRIES = 3  # of what a failed run has left, retry_s apart

FENCED = EventRate()  # of this process, which is one shard


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    uid: int
    first_offset: int
    high_watermark: int
    size_bytes: int
    segments: int
    tail_bytes: int
    waiting_bytes: int
    rebuilt_indexes: int  # since the start


class PartitionLog(PartitionState):
    """Owned by one shard. `turn` is told that there is something to write."""

    def __init__(self, resources: LogResources, directory: str, identity: PartitionIdentity, turn: Turn) -> None:
        super().__init__(resources, directory, identity, turn)
        self.reader = PartitionReader(self)
        self._disk, self._settings = resources.disk, resources.settings
        self._turn = turn
        self._idle = asyncio.Event()
        self._idle.set()
        self._flush_aim = 0
        self._roll_due = False
        self._failed = self.is_hurried = False
        self._uncut: seg.Segment | None = None  # what a failed run has left in it could not be cut
        self.unsynced_end = 0  # of what a run in flight has written and answered and not synced yet; else 0
        # A failed run or roll may have left bytes or a file that nobody acknowledged; the other: so it was before.
        self._left_behind = self._segment_left_behind = False
        self._removal = asyncio.Lock()
        self._deleted = DeletedSegments(resources, directory)
        self.index_saves: set[asyncio.Task[None]] = set()

    def statistics(self) -> PartitionStatistics:
        return PartitionStatistics(
            self.uid,
            self.first_offset,
            self.high_watermark,
            self.size_bytes,
            self.segments_count,
            self.tail.bytes,
            self.waiting_bytes,
            self.reader.rebuilt_indexes,
        )

    def fence_after_bug(self, what: str, error: Exception) -> None:
        """Once a partition; many at a time are one event, with how many were left out before it."""
        refused_bytes = self.waiting_bytes
        super().fence_after_bug(what, error)
        left_out = FENCED.take()
        if left_out is not None:
            fields = {"partition": self.uid, "what": what, "high_watermark": self.high_watermark}
            fields |= {"next_offset": self.next_offset, "refused_bytes": refused_bytes, "left_out": left_out}
            log.error("partition_fenced", exc_info=error, extra={"fields": fields})

    # Runs

    async def flush(self) -> None:
        """Move acknowledged bytes that only the journal holds into the segment.

        Raises:
            StorageError: the run failed; the bytes stay in memory and in the journal.
        """
        self.aim_flush()
        while (error := (await flush_group(self.resources, [self]))[0]) is None and self.has_unflushed:
            pass
        if error is not None:
            raise error

    def aim_flush(self) -> None:
        """What is acknowledged now is to be flushed. What comes later need not be: a flush under load has to end."""
        self._flush_aim = self._flush_limit

    @property
    def has_unflushed(self) -> bool:
        """Of what aim_flush meant."""
        return self.flushed_end < self._flush_aim and not self.is_closed

    @property
    def _flush_limit(self) -> int:
        if self.is_closed:  # its tail is gone, and its directory may be
            return self.flushed_end
        return self.next_offset if self.is_memory else self.durable_end

    def begin_flush(self) -> None:
        """No other run is in flight, and none begins before the end of this one. Every begin has its end_flush."""
        assert not self.running
        self.begin_run(Running.FLUSH)

    @property
    def has_flushable(self) -> bool:
        return self.flushed_end < self._flush_limit

    def build_flush(self) -> FlushWrite:
        """What is to be written: it has_flushable, and its segment is there."""
        return self.build_write(self.segments[-1], self._flush_limit, self._settings.flush_run_bytes)

    @property
    def needs_segment(self) -> bool:
        """The next run goes into a new one."""
        return not self.segments or self._roll_due or self.segments[-1].end >= self.identity.segment_bytes

    async def end_flush(self, write: FlushWrite | None, error: StorageError | None) -> None:
        """error: why it was not built, or not written or synced."""
        self._failed = error is not None
        try:
            if write is not None:
                await self.end_writes([write], error)
            if write is not None and error is None:
                self.journaled_end = max(self.journaled_end, self.flushed_end)
                self.note_durable(self.flushed_end)
        finally:
            self.finish_run()

    def roll_at_next_run(self) -> None:
        self._roll_due = True

    def begin_run(self, kind: Running) -> None:
        self.running, self.is_hurried, self._uncut = kind, False, None
        self._idle.clear()

    def finish_run(self) -> None:
        self.running = Running.IDLE
        self.recount_backlog()
        self.release_acks()
        self._idle.set()
        failed, self._failed = self._failed, False
        if not self.has_work:
            return
        if failed:
            asyncio.get_running_loop().call_later(self._settings.retry_s, self._turn.mark_dirty, self)
        else:
            self._turn.mark_dirty(self)

    def build_write(
        self, segment: seg.Segment, limit: int, most_bytes: int, behind: FlushWrite | None = None
    ) -> FlushWrite:
        """Of what is in no segment yet: most_bytes of it, below the offset limit. behind: a write not ended yet."""
        start = behind.run.end_offset if behind is not None else self.flushed_end
        position = behind.end if behind is not None else segment.end
        pool, mark_from = self.resources.staging, segment.index.next_mark(position)
        run = build_run(self.tail, start, limit, most_bytes, pool, self._settings.whole_bytes, mark_from)
        return FlushWrite(segment, position, run)

    async def end_writes(self, writes: Sequence[FlushWrite], error: StorageError | None) -> None:
        """All of them are durable, or error: nobody knows of any."""
        self.unsynced_end = 0
        for write in writes:
            write.run.give_back(self.resources.staging)
        if error is not None:
            await self._cut_failed_run(writes[0].segment, error)
            return
        for write in writes:
            for base_offset, place, timestamp in write.run.marks:
                write.segment.index.add(base_offset, write.position + place, timestamp)
            write.segment.end = write.end
            self.note_flushed(write.run.end_offset)

    async def _cut_failed_run(self, segment: seg.Segment, error: StorageError) -> None:
        """Cut physically, or a whole leftover of this run could revive (storage rule 4).

        After anything but a full disk the bytes go to a new segment: this one ends logically where that begins.
        """
        self._failed = self._left_behind = True
        self._roll_due = self._roll_due or not isinstance(error, DiskFullError)
        try:
            assert segment.file is not None
            await cut_synced(self._disk, self.resources.faults, segment.file, segment.end)
            self._uncut = None
        except StorageError:
            self._roll_due, self._uncut = True, segment

    async def cut_again(self, error: StorageError) -> bool:
        """After a run that failed with error: False, its leftover could be taken for what is appended now.

        That of a flush could, too, but it is what was acknowledged.
        """
        for _ in range(CUT_TRIES):
            if self._uncut is None:
                return True
            await asyncio.sleep(self._settings.retry_s)
            await self._cut_failed_run(self._uncut, error)
        return self._uncut is None

    async def _make_segment(self) -> None:
        """Raises StorageError: it has not got the one that its next run goes into."""
        for error in await make_segments(self.resources, [self]):
            if error is not None:
                raise error

    async def empty_active(self) -> bool:
        """Have the active segment take the next run from its beginning, if that has the same name. Raises StorageError.

        Nothing of it was ever acknowledged, and the journal may have its name already.
        """
        active = self.segments[-1] if self.segments else None
        if active is None or active.file is None or active.base_offset != self.flushed_end:
            return False
        await seg.empty_segment(self._disk, self.resources.faults, active)
        self._roll_due = False
        return True

    def describe_segment(self) -> NewSegment:
        """The one that begins at what is in none yet. Until add_segment something of it may be there."""
        self._segment_left_behind, self._left_behind = self._left_behind, True
        label = b"" if self.segments else self.identity.label()
        return NewSegment(self.directory, seg.SegmentHeader(self.uid, self.flushed_end, self.last_timestamp), label)

    def add_segment(self, created: seg.Segment) -> None:
        """It was made as described, durably."""
        self._left_behind, self._roll_due = self._segment_left_behind, False
        if self.segments:
            self.resources.files.seal(self.segments[-1])
            log.info("segment_rolled", extra={"fields": {"partition": self.uid, "base_offset": created.base_offset}})
        self.segments.append(created)
        self.encoded_hint = None

    # Identity

    @property
    def keeps_identity(self) -> bool:
        """It has a segment, with which the first one came, and is not on its way to another shard."""
        return bool(self.segments) and self.refusal is None and not self.is_closed

    async def keep_identity(self) -> None:
        """Have the identity file say what the metadata says. Raises StorageError."""
        payload = self.identity.label()
        if payload and payload != await read_identity(self._disk, self.directory, self.uid):
            await write_identity(self._disk, self.resources.faults, self.directory, self.uid, payload)

    # Indexes

    def indexes_due(self, least_bytes: int = INDEX_SAVE_BYTES) -> list[seg.Segment]:
        """Segments whose index file is worth writing: sealed ones, and those that grew by least_bytes."""
        due = []
        for segment in self.segments:
            grown = segment.end - segment.index_saved_end
            least = least_bytes if segment is self.segments[-1] else min(least_bytes, INDEX_WORTH_BYTES)
            if segment.indexed and grown >= least:
                due.append(segment)
        return due

    async def save_index(self, segment: seg.Segment) -> None:
        """Raises StorageError; the index is a hint, so nothing is lost then."""
        segment.index_saved_end = segment.end
        await write_index(self._disk, self.directory, segment.index, self.uid, segment.base_offset)

    # Retention and removal

    async def delete_segments(self, count: int, *, keep_from: int | None = None) -> int:
        """Delete up to count sealed segments, oldest first, none that reaches past keep_from; gives how many went.

        Raises StorageError, and NotOwnerError while the partition moves.
        """
        async with self._removal:
            if self.refusal is not None:
                raise self.refusal.with_traceback(None)
            return await self._delete_segments(count, keep_from)

    async def _delete_segments(self, count: int, keep_from: int | None) -> int:
        deleted = 0
        while len(self.segments) > 1 and deleted < count:
            if keep_from is not None and self.segments[1].base_offset > keep_from:
                break
            self._deleted.add(self.segments.pop(0))
            deleted += 1
        while self.tail.evict_oldest(self.first_offset):  # what is deleted is in no poll any more
            pass
        await self._deleted.remove_files()
        return deleted

    @property
    def has_unneeded(self) -> bool:
        """Files of deleted segments are there that could not be removed."""
        return bool(self._deleted)

    async def oldest_unsealed(self) -> int | None:
        """When the oldest message that is in no sealed segment was appended, in microseconds; None: there is none.

        Raises StorageError.
        """
        active = self.segments[-1] if self.segments else None
        if active is not None and active.end > seg.BLOCK_BYTES:
            return await seg.first_timestamp(self._disk, active)
        entry = self.tail.at(self.flushed_end) if self.flushed_end < self.next_offset else None
        return None if entry is None else entry.timestamp

    async def roll(self) -> bool:
        """Seal the active segment now: an empty one follows it. False: it is empty itself, or the partition leaves.

        What is not flushed goes into the new one. Raises StorageError.
        """
        async with self._removal:  # a move waits for it
            await self.end_run()
            if not self._may_roll:
                return False
            self.begin_run(Running.FLUSH)
            try:
                self._roll_due = True
                await self._make_segment()
            finally:
                self.finish_run()
            return True

    @property
    def _may_roll(self) -> bool:
        if self.refusal is not None or self.fenced is not None or self.is_closed or not self.segments:
            return False
        return self.segments[-1].base_offset < self.flushed_end

    def hurry(self) -> None:
        """A run that could take more comes to its end."""
        self.is_hurried = True
        if self.on_append is not None:
            self.on_append()

    async def end_run(self) -> None:
        """Wait until no run is in flight."""
        while self.running:
            self.hurry()
            await self._idle.wait()

    async def close(self) -> None:
        """For good. Raises StorageError."""
        await self.end_run()
        self.drop_tail()
        for segment in self.segments:
            self.resources.walks.forget(segment)
            await self.resources.files.close(segment)

    # Moving to another shard (handover.py)

    @property
    def is_drained(self) -> bool:
        """All that was appended is answered. Under `memory` it always is; the flush takes the rest."""
        if self.running or self.has_waiting:
            return False
        return self.is_memory or self.durable_end == self.next_offset

    @property
    def is_flushed(self) -> bool:
        return self.flushed_end == self.next_offset

    async def end_removals(self) -> None:
        """Wait for a deletion of segments and for index files that are being written. Raises StorageError."""
        async with self._removal:
            await self._deleted.remove_files()
        if self.index_saves:
            await asyncio.wait(self.index_saves)

    async def trim(self) -> None:
        """Remove what failed runs and rolls left behind the end: whoever opens the files next finds just what counts.

        Raises StorageError.
        """
        if not self._left_behind:
            return
        known = {segment.path for segment in self.segments}
        await remove_other_segments(self._disk, self.resources.faults, self.directory, known)
        if self.segments:
            await self._cut(self.segments[-1])
        self._left_behind = False

    async def _cut(self, segment: seg.Segment) -> None:
        file = await self.resources.files.get(segment)
        await cut_synced(self._disk, self.resources.faults, file, segment.end)

    def shut(self) -> tuple[NotOwnerError, Tail]:
        """No reads from here on. (The reason of the refusal, what was in memory: it is in segments too.)"""
        assert self.refusal is not None and self.is_flushed
        self.closed_hint, self.encoded_hint = self.hint(), None
        self.closed = self.refusal
        return self.closed, self.replace_tail()

    def drop_tail(self) -> Tail:
        """Read no more. Gives what was in memory: it is the arena's again once emptied, whoever refers to this log."""
        self.is_closed = True
        return self.replace_tail()

    async def close_files(self) -> None:
        """For another owner. An error of a close is none: the descriptor is gone, and all was synced before."""
        for segment in self.segments:
            self.resources.walks.forget(segment)
            with contextlib.suppress(StorageError):
                await self.resources.files.close(segment)

    def open_again(self) -> None:
        self.refusal = self.closed = self.closed_hint = None

    # Recovery

    def take_recovered_end(self, end: int, last_timestamp: int) -> None:
        """What the segments hold: all below `end` is there."""
        self.encoded_hint = None
        self.last_timestamp = max(self.last_timestamp, last_timestamp)
        self.next_offset = self.journaled_end = self.durable_end = self.written_end = self.flushed_end = end

    async def forget_segments(self) -> None:
        """Before recovery tries once more."""
        segments, self.segments = self.segments, []
        for segment in segments:
            self.resources.walks.forget(segment)
            await self.resources.files.close(segment)

    def replay(self, data: memoryview, base_offset: int, count: int, timestamp: int, sequence: int) -> None:
        """Take a journal record: below the end it is here already, at the end it is new.

        Raises:
            CorruptionError: there is a gap, or it begins here and ends beyond.
        """
        if base_offset + count <= self.next_offset:
            return
        if base_offset != self.next_offset:
            raise CorruptionError(
                self.directory, 0, f"offset {self.next_offset}, the journal goes on with {base_offset}"
            )
        self.take_back(TailEntry(base_offset, count, timestamp, self._copied(data), sequence))

    def _copied(self, data: memoryview) -> WritableBuffer:
        """Recovery refuses nothing for want of room: after a start with a smaller arena the rest is on the heap."""
        try:
            return self.resources.memory.copy(data)
        except ArenaFullError:
            return bytearray(data)
