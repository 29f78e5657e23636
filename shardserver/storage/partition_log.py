"""One partition's log: waiting appends, the tail in memory, segments on disk.

Offsets in rising order, each the first one that is *not yet* what its name says:

    flushed_end <= durable_end <= next_offset      journaled_end: given to a journal write or a run
    high_watermark: what polls see; it follows durable_end, written_end or next_offset as the topic's
    durability says (docs/durability.md)

Offsets and timestamps are given when the write that carries a batch is built, so that a failed run
leaves no gap; `memory` topics are answered at once and so are stamped at once, and are never rolled back.
At most one run (flush or direct) of a partition is in flight; while a direct one is, nothing of the
partition goes to the journal (storage rule 3).
"""

from __future__ import annotations

import asyncio
import logging
import os
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from shardserver.errors import CorruptionError, DiskFullError, ShardServerError, StorageError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.protocol.batch import stamp_batch
from shardserver.storage import journal_format as fmt
from shardserver.storage import segment as seg
from shardserver.storage.disk import Disk
from shardserver.storage.index import SparseIndex, index_path, read_index, write_index
from shardserver.storage.journal import Journal
from shardserver.storage.read_builder import ReadBuilder, ReadResult
from shardserver.storage.segment_reader import Damage, SegmentFiles, walk_segment
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.synced_write import SyncFaults, write_synced
from shardserver.storage.tail import Tail, TailEntry

log = logging.getLogger(__name__)

# How much an active segment grows between two writings of its index, and from what size on an index is worth a file.
INDEX_SAVE_BYTES, INDEX_WORTH_BYTES = 64 << 20, 1 << 20

# What a `memory` partition gathers before it writes within its second, and how far its disk may fall behind.
MAX_GATHER_BYTES, BACKLOG_LIMIT_BYTES = 8 << 20, 64 << 20

AppendDone = Callable[[int | ShardServerError], None]


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    uid: int
    first_offset: int
    high_watermark: int
    size_bytes: int
    segments: int
    tail_bytes: int
    waiting_bytes: int


class PartitionLog:
    """Owned by one shard. `wake` tells that shard's log that there is something to write."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        identity: PartitionIdentity,
        settings: LogSettings,
        clock: Callable[[], int],
        wake: Callable[[PartitionLog], None],
        faults: SyncFaults,
        files: SegmentFiles,
    ) -> None:
        self.identity = identity
        self.directory = directory
        self._disk, self._settings, self._clock, self._wake = disk, settings, clock, wake
        self._faults, self._files = faults, files
        self.tail = Tail()
        self.segments: list[seg.Segment] = []
        self.next_offset = 0
        self.journaled_end = 0
        self.durable_end = 0
        self.written_end = 0
        self.flushed_end = 0
        self.last_timestamp = 0
        self.pinned_sequence = 0
        self.fenced: StorageError | None = None
        self._start_offset = 0
        self._waiting: deque[tuple[bytearray, int, AppendDone]] = deque()
        self._waiting_bytes = 0
        self._backlog_bytes = 0  # stamped, and neither in the journal nor in a segment yet
        self._acks: deque[tuple[int, int, AppendDone]] = deque()
        self._running = ""
        self._idle = asyncio.Event()
        self._idle.set()
        self._roll_due = False
        self._failed = False
        self._directory_ready = False
        self.skipped_messages = 0
        self._reported: set[int] = set()

    # What readers ask

    @property
    def uid(self) -> int:
        return self.identity.uid

    @property
    def first_offset(self) -> int:
        """The oldest kept offset; equals high_watermark when the partition is empty."""
        return self.segments[0].base_offset if self.segments else self._start_offset

    @property
    def high_watermark(self) -> int:
        durability = self.identity.durability
        if durability is Durability.FSYNC:
            return self.durable_end
        return self.written_end if durability is Durability.WRITE else self.next_offset

    @property
    def is_empty(self) -> bool:
        return self.high_watermark <= self.first_offset

    @property
    def current_offset(self) -> int:
        return max(0, self.high_watermark - 1)

    @property
    def message_count(self) -> int:
        return max(0, self.high_watermark - self.first_offset)

    @property
    def segments_count(self) -> int:
        return max(1, len(self.segments))

    @property
    def size_bytes(self) -> int:
        unflushed = self.tail.iterate_from(self.flushed_end, len(self.tail)) if self.tail else []
        waiting = sum(len(entry.data) for entry in unflushed if entry.base_offset >= self.flushed_end)
        return sum(segment.data_bytes for segment in self.segments) + waiting

    def statistics(self) -> PartitionStatistics:
        return PartitionStatistics(
            self.uid,
            self.first_offset,
            self.high_watermark,
            self.size_bytes,
            self.segments_count,
            self.tail.bytes,
            self._waiting_bytes,
        )

    # Appends

    def append(self, batch: bytearray, count: int, done: AppendDone) -> None:
        """Queue a checked batch of count messages; the log owns the bytes from here on.

        done gets the base offset once the batch is as durable as its topic says, or the error that refused it.
        """
        if self.fenced is not None:
            done(self.fenced)
            return
        if self.is_memory:
            entry = self._stamp(batch, count)
            self._acks.append((entry.end_offset, entry.base_offset, done))
            self._release_acks()
        else:
            self._waiting.append((batch, count, done))
            self._waiting_bytes += len(batch)
        self._wake(self)

    def _stamp(self, batch: bytearray, count: int) -> TailEntry:
        self.last_timestamp = max(self.last_timestamp, self._clock())
        stamp_batch(batch, self.identity.partition_id, self.next_offset, self.last_timestamp)
        entry = TailEntry(self.next_offset, count, self.last_timestamp, batch)
        self.tail.append(entry)
        self.next_offset += count
        self._backlog_bytes += len(batch)
        return entry

    def _stamp_waiting(self) -> TailEntry:
        batch, count, done = self._waiting.popleft()
        self._waiting_bytes -= len(batch)
        entry = self._stamp(batch, count)
        self._acks.append((entry.end_offset, entry.base_offset, done))
        return entry

    @property
    def has_work(self) -> bool:
        """Something here has to reach the journal or a segment."""
        return bool(self._waiting) or self.journaled_end < self.next_offset

    @property
    def is_memory(self) -> bool:
        return self.identity.durability is Durability.MEMORY

    @property
    def unwritten_bytes(self) -> int:
        return self._waiting_bytes + self._backlog_bytes

    @property
    def is_due(self) -> bool:
        """Write now: a client waits, or so much has gathered in a `memory` partition as its topic wants at once."""
        identity = self.identity
        if not self.is_memory:
            return bool(self._waiting) or self._backlog_bytes >= self._settings.max_write_bytes
        if self._running:
            return False
        gathered = self.next_offset - self.journaled_end
        return self._backlog_bytes >= self._gather_bytes or 0 < identity.save_messages <= gathered

    @property
    def _gather_bytes(self) -> int:
        return min(self.identity.save_bytes or MAX_GATHER_BYTES, self._settings.flush_run_bytes)

    def wants_run(self, *, lingered: bool) -> bool:
        """So much waits that a run of its own is cheaper than the journal. lingered: it has waited its second."""
        if self._running:
            return False
        least = self._settings.direct_bytes
        return self.unwritten_bytes >= (max(least, self._gather_bytes) if self.is_memory and not lingered else least)

    def _recount_backlog(self) -> None:
        backlog = self.journaled_end < self.next_offset
        entries = self.tail.iterate_from(self.journaled_end, len(self.tail)) if backlog else []
        self._backlog_bytes = sum(len(entry.data) for entry in entries)

    @property
    def is_running(self) -> bool:
        return bool(self._running)

    def journal_into(self, journal: Journal, shard: int) -> int:
        """Stage what may go into the journal write being built; gives the first offset not in it (or -1: nothing)."""
        if self._running == "direct" or self.fenced is not None or (self.is_memory and self._running):
            return -1
        before = self.journaled_end
        while self.journaled_end < self.next_offset:
            entry = self.tail.iterate_from(self.journaled_end, 1)[0]
            if not journal.fits(len(entry.data)):
                break
            self._journal_entry(entry, journal, shard)
        else:
            while self._waiting and journal.fits(len(self._waiting[0][0])):
                self._journal_entry(self._stamp_waiting(), journal, shard)
        return self.journaled_end if self.journaled_end > before else -1

    def _journal_entry(self, entry: TailEntry, journal: Journal, shard: int) -> None:
        journal.add(fmt.KIND_BATCH, 0, shard, self.uid, self.identity.term, entry.data)
        entry.sequence = journal.sequence
        self.journaled_end = entry.end_offset
        self._backlog_bytes -= len(entry.data)

    def note_written(self, end: int) -> None:
        self.written_end = max(self.written_end, end)
        self._release_acks()

    def note_durable(self, end: int) -> None:
        self.durable_end = max(self.durable_end, end)
        self.written_end = max(self.written_end, end)
        self._release_acks()

    def _release_acks(self) -> None:
        visible = self.high_watermark
        if self.is_memory and self._backlog_bytes > BACKLOG_LIMIT_BYTES:
            visible = self.written_end  # the disk is slower than the producers: let them wait for it
        while self._acks and self._acks[0][0] <= visible:
            _, base, done = self._acks.popleft()
            done(base)

    def fail_waiting(self, error: ShardServerError) -> None:
        """Refuse what has no offset yet."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for _, _, done in waiting:
            done(error)

    def fence(self, error: StorageError) -> None:
        """Take no more appends: what was acknowledged may be half changed."""
        self.fenced = error
        self.fail_waiting(error)
        acks, self._acks = self._acks, deque()
        for _, _, done in acks:
            done(error)

    # Runs

    async def direct(self) -> None:
        """One run of what only the journal holds so far and what waits, with its own sync (storage rule 2)."""
        if self._running:  # a flush began between the decision and this task; its end wakes us again
            return
        if self.is_memory:
            await self._flush_memory()
            return
        self._begin_run("direct")
        fallback = self.next_offset
        try:
            taken = 0
            while self._waiting and taken < self._settings.flush_run_bytes:
                taken += len(self._stamp_waiting().data)
            end = self.next_offset
            entries = self.tail.iterate_from(self.flushed_end, len(self.tail))
            await self._write_run(entries, on_written=lambda: self.note_written(end))
            self.journaled_end = max(self.journaled_end, end)
            self.note_durable(end)
        except StorageError as error:
            self._roll_back(max(fallback, self.high_watermark), error)
            log.warning("run_failed", extra={"fields": {"partition": self.uid, "error": str(error)}})
        finally:
            self._end_run()

    async def _flush_memory(self) -> None:
        try:
            await self.flush()
        except StorageError as error:  # what was acknowledged stays in memory; the end of the run tries again
            log.warning("run_failed", extra={"fields": {"partition": self.uid, "error": str(error)}})

    def _roll_back(self, offset: int, error: StorageError) -> None:
        """Nothing from offset on was acknowledged or journaled: give those offsets back, refuse their batches."""
        self.tail.cut_from(offset)
        self.next_offset = offset
        refused = [ack for ack in self._acks if ack[0] > offset]
        self._acks = deque(ack for ack in self._acks if ack[0] <= offset)
        for _, _, done in refused:
            done(error)

    async def flush(self) -> None:
        """Move acknowledged bytes that only the journal holds into the segment.

        Raises:
            StorageError: the run failed; the bytes stay in memory and in the journal.
        """
        while self._running:
            await self._idle.wait()
        self._begin_run("flush")
        try:
            limit = self.next_offset if self.is_memory else self.durable_end
            while self.flushed_end < limit:
                await self._write_run(self._flush_entries(limit), on_written=None)
                self.journaled_end = max(self.journaled_end, self.flushed_end)
                self.note_durable(self.flushed_end)
        finally:
            self._end_run()

    def _flush_entries(self, limit: int) -> list[TailEntry]:
        taken: list[TailEntry] = []
        total = 0
        for entry in self.tail.iterate_from(self.flushed_end, len(self.tail)):
            if entry.end_offset > limit or (taken and total + len(entry.data) > self._settings.flush_run_bytes):
                break
            taken.append(entry)
            total += len(entry.data)
        return taken

    def _begin_run(self, kind: str) -> None:
        self._running = kind
        self._idle.clear()

    def _end_run(self) -> None:
        self._running = ""
        self._recount_backlog()
        self._release_acks()
        self._idle.set()
        failed, self._failed = self._failed, False
        if not self.has_work:
            return
        if failed:
            asyncio.get_running_loop().call_later(self._settings.retry_s, self._wake, self)
        else:
            self._wake(self)

    async def _write_run(self, entries: list[TailEntry], on_written: Callable[[], None] | None) -> None:
        segment = await self._segment_for_run(entries[0].base_offset)
        assert segment.file is not None
        total = sum(len(entry.data) for entry in entries)
        staging = aligned_buffer(align_up(total, fmt.BLOCK_BYTES))
        position, places = 0, []
        for entry in entries:
            staging[position : position + len(entry.data)] = entry.data
            places.append(segment.end + position)
            position += len(entry.data)
        try:
            await write_synced(self._disk, self._faults, segment.file, segment.end, staging, on_written)
        except StorageError as error:
            await self._cut_failed_run(segment, error)
            raise
        for entry, place in zip(entries, places, strict=True):
            segment.index.add(entry.base_offset, place, entry.timestamp)
        segment.end += len(staging)
        self.flushed_end = entries[-1].end_offset

    async def _cut_failed_run(self, segment: seg.Segment, error: StorageError) -> None:
        """Cut physically, or a whole leftover of this run could revive (storage rule 4).

        After anything but a full disk the bytes go to a new segment: this one ends logically where that begins.
        """
        self._failed = True
        self._roll_due = self._roll_due or not isinstance(error, DiskFullError)
        try:
            assert segment.file is not None
            await self._disk.truncate(segment.file, segment.end)
            await self._disk.sync(segment.file)
        except StorageError:
            self._roll_due = True

    async def _segment_for_run(self, base_offset: int) -> seg.Segment:
        active = self.segments[-1] if self.segments else None
        if active is not None and not self._roll_due and active.end < self.identity.segment_bytes:
            return active
        if not self._directory_ready:
            await self._disk.make_directory(self.directory)
            await self._disk.sync_directory(os.path.dirname(self.directory))
            self._directory_ready = True
        if active is not None and active.file is not None and active.base_offset == base_offset:
            # Nothing of it was ever acknowledged: its name is needed again.
            self.segments.pop()
            await self._files.close(active)
            active = None
        created = await seg.create_segment(
            self._disk, self._faults, self.directory, self.uid, base_offset, self.last_timestamp
        )
        self.segments.append(created)
        self._roll_due = False
        if active is not None:
            self._files.seal(active)
            log.info("segment_rolled", extra={"fields": {"partition": self.uid, "base_offset": base_offset}})
        return created

    def hint(self) -> fmt.Hint | None:
        """What the journal may say of the active segment; None while there is no segment."""
        if not self.segments:
            return None
        active = self.segments[-1]
        if self.flushed_end < active.base_offset:
            return None
        return fmt.Hint(active.base_offset, active.end, self.flushed_end, self.last_timestamp)

    def oldest_unflushed_sequence(self) -> int:
        """The journal file with the oldest record that is in no segment yet; 0 when there is none."""
        if self.flushed_end >= self.journaled_end:
            return 0
        entries = self.tail.iterate_from(self.flushed_end, 1)
        return entries[0].sequence if entries else 0

    # Reads

    def try_read(self, start: int, count: int, max_bytes: int) -> ReadResult | None:
        """A read that memory can answer; None when segments are needed."""
        builder = ReadBuilder(max(start, self.first_offset), count, max_bytes, self.high_watermark)
        if not builder.wants_more:
            return builder.result()
        first = self.tail.first_offset
        if first is None or builder.next_offset < first:
            return None
        self._read_tail(builder)
        return builder.result()

    def _read_tail(self, builder: ReadBuilder) -> None:
        for entry in self.tail.iterate_from(builder.next_offset, len(self.tail)):
            if not builder.wants_more:
                return
            builder.add(entry.data, entry.base_offset, entry.count)

    async def read(self, start: int, count: int, max_bytes: int) -> ReadResult:
        """Up to count messages from start (or the oldest kept one) on, not above max_bytes but at least one batch.

        Raises:
            CorruptionError: the batch at the start is damaged. Damage further on ends the reply before it.
        """
        builder = ReadBuilder(max(start, self.first_offset), count, max_bytes, self.high_watermark)
        while builder.wants_more:
            first = self.tail.first_offset
            if first is not None and builder.next_offset >= first:
                self._read_tail(builder)
                break
            try:
                await self._read_segment(builder)
            except CorruptionError:
                if builder.count:
                    break
                raise
        return builder.result()

    async def _load_index(self, segment: seg.Segment) -> None:
        """From its file, else from the data: needed once for what was there before this start."""
        if segment.indexed:
            return
        stored = await read_index(self._disk, self.directory, self.uid, segment.base_offset)
        if stored is None:
            await self._rebuild_index(segment)
            return
        if not segment.indexed:  # no other reader was faster
            known = segment.index.positions[0] if segment.index.positions else segment.end
            stored.cut(known)
            stored.extend(segment.index, known)
            segment.index, segment.index_is_stored, segment.indexed = stored, True, True

    async def _rebuild_index(self, segment: seg.Segment) -> None:
        built, walked_end = SparseIndex(), segment.end
        start = (segment.base_offset, fmt.BLOCK_BYTES)
        async for one in self._walk(segment, start, self._end_of(segment)):
            if not isinstance(one, Damage):
                built.add(one.base_offset, one.position, one.timestamp)
        built.extend(segment.index, walked_end)  # what was written during the walk
        segment.index, segment.index_is_stored, segment.indexed = built, False, True

    def _walk(self, segment: seg.Segment, start: tuple[int, int], end: int) -> AsyncIterator[seg.StoredBatch | Damage]:
        return walk_segment(self._disk, self._files, segment, self._settings, start, end)

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

    def _end_of(self, segment: seg.Segment) -> int:
        place = self.segments.index(segment)
        return self.segments[place + 1].base_offset if place + 1 < len(self.segments) else self.flushed_end

    def _segment_of(self, offset: int) -> seg.Segment:
        bases = [segment.base_offset for segment in self.segments]
        return self.segments[max(0, bisect_right(bases, offset) - 1)]

    async def _read_segment(self, builder: ReadBuilder) -> None:
        """Take batches of one segment until the builder is full or the segment ends."""
        segment = self._segment_of(builder.next_offset)
        try:
            await self._load_index(segment)
            await self._take_batches(segment, builder)
        except CorruptionError:
            raise
        except StorageError:
            if segment in self.segments:
                raise
            builder.skip_to(max(builder.next_offset, self.first_offset), self.high_watermark)  # deleted meanwhile

    async def _take_batches(self, segment: seg.Segment, builder: ReadBuilder) -> None:
        start = segment.index.at_or_before(builder.next_offset) or (segment.base_offset, fmt.BLOCK_BYTES)
        async for one in self._walk(segment, start, self._end_of(segment)):
            if not builder.wants_more:
                return
            if isinstance(one, Damage):
                if segment.index_is_stored:
                    await self._rebuild_index(segment)  # the index may be what is wrong: once more without it
                    return
                self._meet_damage(segment, one, builder)
            elif one.next_offset > builder.next_offset:
                builder.add(one.data, one.base_offset, one.message_count)

    def _meet_damage(self, segment: seg.Segment, damage: Damage, builder: ReadBuilder) -> None:
        if damage.next_offset <= builder.next_offset:
            return  # it lies before what is asked for
        if damage.offset not in self._reported:  # a client may ask for it a thousand times a second
            self._reported.add(damage.offset)
            fields = {"path": segment.path, "position": damage.position, "offset": damage.offset}
            log.error("batch_damaged", extra={"fields": fields | {"next_offset": damage.next_offset}})
        if not self._settings.skip_damaged:
            raise CorruptionError(segment.path, damage.position, f"the batch with offset {damage.offset}")
        self.skipped_messages += damage.next_offset - builder.next_offset
        builder.skip_to(damage.next_offset, self.high_watermark)

    async def offset_at(self, timestamp: int) -> int:
        """The base offset of the first batch whose timestamp is not below `timestamp`; the high watermark if none."""
        first = self.tail.first_offset
        for segment in list(self.segments):
            successor_old = self._successor_timestamp(segment)
            if successor_old is not None and successor_old < timestamp:
                continue
            found = await self._offset_in(segment, timestamp)
            if found is not None:
                return found
        for entry in self.tail.iterate_from(max(first or 0, self.flushed_end), len(self.tail)):
            if entry.timestamp >= timestamp and entry.end_offset > self.flushed_end:
                return min(entry.base_offset, self.high_watermark)
        return self.high_watermark

    def _successor_timestamp(self, segment: seg.Segment) -> int | None:
        place = self.segments.index(segment)
        return self.segments[place + 1].previous_timestamp if place + 1 < len(self.segments) else None

    async def _offset_in(self, segment: seg.Segment, timestamp: int) -> int | None:
        await self._load_index(segment)
        start = segment.index.before_timestamp(timestamp) or (segment.base_offset, fmt.BLOCK_BYTES)
        async for one in self._walk(segment, start, self._end_of(segment)):
            if not isinstance(one, Damage) and one.timestamp >= timestamp:
                return one.base_offset
        return None

    # Retention and removal

    async def delete_segments(self, count: int, *, keep_from: int | None = None) -> int:
        """Delete up to count sealed segments, oldest first, none that reaches past keep_from; gives how many went."""
        removed: list[seg.Segment] = []
        while len(self.segments) > 1 and len(removed) < count:
            if keep_from is not None and self.segments[1].base_offset > keep_from:
                break
            removed.append(self.segments.pop(0))
        for segment in removed:
            await self._remove_segment(segment)
        if removed:
            await self._disk.sync_directory(self.directory)
        return len(removed)

    async def _remove_segment(self, segment: seg.Segment) -> None:
        await self._files.close(segment)
        await self._disk.unlink(index_path(self.directory, segment.base_offset))
        await self._disk.unlink(segment.path)

    async def enforce_retention(self) -> int:
        """Delete the oldest sealed segments while the sealed ones exceed the partition's limit."""
        limit, excess = self.identity.max_bytes, 0
        if limit is None:
            return 0
        sealed = [segment.data_bytes for segment in self.segments[:-1]]
        while sealed and sum(sealed) > limit:
            sealed.pop(0)
            excess += 1
        return await self.delete_segments(excess)

    async def close(self) -> None:
        while self._running:
            await self._idle.wait()
        for segment in self.segments:
            await self._files.close(segment)

    # Recovery

    async def recover(self, hint: fmt.Hint | None) -> int:
        """Find the segments, scan the last one from the hint, cut it there; gives the bytes read.

        Raises:
            CorruptionError: a segment is missing, or its header is damaged.
        """
        try:
            names = [name for name in await self._disk.list_directory(self.directory) if name.endswith(".log")]
            self._directory_ready = True
        except StorageError:
            names = []
        for name in names:
            await self._recover_segment(int(name[:-4]), is_last=name == names[-1], hint=hint)
        if hint is not None and (not self.segments or self.segments[-1].base_offset < hint.segment_base):
            raise CorruptionError(self.directory, 0, f"a segment with base offset {hint.segment_base}")
        if not self.segments:
            return 0
        return await self._recover_active(hint)

    async def _recover_segment(self, base_offset: int, *, is_last: bool, hint: fmt.Hint | None) -> None:
        path = seg.segment_path(self.directory, base_offset)
        file = await self._disk.open(path, lock=True)
        block = aligned_buffer(fmt.BLOCK_BYTES)
        file_bytes = await self._disk.file_bytes(file)
        await self._disk.read(file, 0, block)
        header = seg.decode_header(block)
        if header is None or header[:2] != (self.uid, base_offset):
            await self._disk.close(file)
            if not is_last or file_bytes > fmt.BLOCK_BYTES or (hint is not None and hint.segment_base == base_offset):
                raise CorruptionError(path, 0, f"a segment header of partition {self.uid}")
            # Its header was never synced, so no run was written behind it.
            await self._disk.unlink(path)
            await self._disk.sync_directory(self.directory)
            return
        self.last_timestamp = max(self.last_timestamp, header[2])
        found = seg.Segment(
            path, base_offset, header[2], end=align_up(max(file_bytes, fmt.BLOCK_BYTES), fmt.BLOCK_BYTES)
        )
        found.file, found.indexed, found.index_saved_end = file, False, found.end
        if not is_last:
            await self._disk.close(file)
            found.file = None
        self.segments.append(found)

    async def _recover_active(self, hint: fmt.Hint | None) -> int:
        active = self.segments[-1]
        if active.file is None:  # its successor had a torn header and was removed
            active.file = await self._disk.open(active.path)
        start = fmt.Hint(active.base_offset, fmt.BLOCK_BYTES, active.base_offset, self.last_timestamp)
        if hint is not None and hint.segment_base == active.base_offset:
            start = hint
        else:  # its creator may have died before it synced the name; a hint is journaled only after that
            await self._disk.sync_directory(self.directory)
        active.indexed = start.position == fmt.BLOCK_BYTES
        result = await seg.scan_segment(self._disk, active, start, rewrite=True)
        if result.end < await self._disk.file_bytes(active.file):
            await self._disk.truncate(active.file, result.end)
            await self._disk.sync(active.file)
        elif result.end > await self._disk.file_bytes(active.file):
            raise CorruptionError(active.path, result.end, "a segment that reaches up to its hint")
        active.end = active.index_saved_end = result.end
        self.last_timestamp = max(self.last_timestamp, result.last_timestamp)
        end = result.next_offset
        self.next_offset = self.journaled_end = self.durable_end = self.written_end = self.flushed_end = end
        return result.read_bytes

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
        self.tail.append(TailEntry(base_offset, count, timestamp, bytearray(data), sequence))
        self.last_timestamp = max(self.last_timestamp, timestamp)
        end = base_offset + count
        self.next_offset = self.journaled_end = self.durable_end = self.written_end = end
