"""Reads of one partition: the tail from memory, segments from disk, by offset or by timestamp."""

from __future__ import annotations

import logging
from bisect import bisect_right

from shardserver.errors import CorruptionError, NotOwnerError, StorageError
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import journal_format as fmt
from shardserver.storage import segment as seg
from shardserver.storage.index import SparseIndex, read_index
from shardserver.storage.partition_state import PartitionState
from shardserver.storage.read_builder import ReadBuilder, ReadResult
from shardserver.storage.segment_reader import Damage, SegmentWalk, is_hole

log = logging.getLogger(__name__)


MAX_COUNT = 1 << 62


def is_same_batch(stored: memoryview, sent: memoryview) -> bool:
    """Stored bytes are those of a batch as sent, but for partition, offset, time (0..24) and checksum (40..48)."""
    if len(stored) != len(sent) or bytes(stored[24:40]) != bytes(sent[24:40]):
        return False
    return bytes(stored[48:]) == bytes(sent[48:])


class PartitionReader:
    """Any number of reads at once; segments may be added and deleted while one waits for the disk."""

    def __init__(self, state: PartitionState) -> None:
        self._state = state
        self._disk, self._files = state.resources.disk, state.resources.files
        self._settings = state.resources.settings
        self._reported: set[int] = set()
        self.skipped_messages = self.rebuilt_indexes = 0

    def try_read(self, start: int, count: int, max_bytes: int) -> ReadResult | None:
        """A read that memory can answer; None when segments are needed. Raises NotOwnerError."""
        self._check_open()
        builder = ReadBuilder(max(start, self._state.first_offset), count, max_bytes, self._state.high_watermark)
        if not builder.wants_more:
            return self._result(builder)
        first = self._state.tail.first_offset
        if first is None or builder.next_offset < first:
            return None
        self._read_tail(builder)
        return builder.result()

    def _read_tail(self, builder: ReadBuilder) -> None:
        for entry in self._state.tail.from_offset(builder.next_offset):
            if not builder.wants_more:
                return
            builder.add(entry.data, entry.base_offset, entry.count)

    async def read(self, start: int, count: int, max_bytes: int) -> ReadResult:
        """Up to count messages from start (or the oldest kept one) on, not above max_bytes but at least one batch.

        Raises:
            CorruptionError: the batch at the start is damaged. Damage further on ends the reply before it.
            StorageError: the disk failed, or the partition was set aside and has no more than what was read before.
            NotOwnerError: the partition was given to another shard, or deleted, before the read or during it.
        """
        self._check_open()
        builder = ReadBuilder(max(start, self._state.first_offset), count, max_bytes, self._state.high_watermark)
        while builder.wants_more:
            if self._state.is_closed:
                raise NotOwnerError(f"partition {self._state.uid} was deleted, or its shard ends")
            if builder.next_offset < self._state.first_offset:  # deleted while the disk was waited for
                builder.skip_to(self._state.first_offset, self._state.high_watermark)
            first = self._state.tail.first_offset
            if first is not None and builder.next_offset >= first:
                self._read_tail(builder)
                break
            try:
                await self._read_segment(builder)
            except CorruptionError:
                if builder.count:
                    break
                raise
            self._check_open()
        return self._result(builder)

    async def find_batch(
        self, batch: bytes | bytearray | memoryview, count: int, first: int, last: int, taken: set[int]
    ) -> int | None:
        """The base offset, in [first, last) and not in taken, of a stored batch that is this very one; None: not there.

        batch: count messages as their producer sent them. What the stamp changes is not compared.

        Raises:
            StorageError: as read.
        """
        try:
            return await self._find_batch(memoryview(batch), count, first, last, taken)
        finally:  # nobody reads on from here: what was read ahead would lie in the arena for nothing
            for segment in self._state.segments:
                self._state.resources.walks.forget(segment)

    async def _find_batch(self, wanted: memoryview, count: int, first: int, last: int, taken: set[int]) -> int | None:
        offset = first
        while offset < last:
            result = await self.read(offset, MAX_COUNT, self._settings.read_ahead_bytes)
            for stored in result.buffers:
                header = read_batch_header(stored)
                base = header.base_offset  # below first: the batch that holds it, cut
                asked_for = first <= base < last and base not in taken and header.message_count == count
                if asked_for and is_same_batch(memoryview(stored), wanted):
                    return base
            if not result.count:
                return None
            offset = result.last_offset + 1
        return None

    def _result(self, builder: ReadBuilder) -> ReadResult:
        """Empty is no answer of a partition that was set aside: its consumers would wait for ever."""
        if builder.count == 0 and self._state.set_aside is not None:
            raise self._state.set_aside
        return builder.result()

    def _check_open(self) -> None:
        if self._state.closed is not None:
            raise self._state.closed.with_traceback(None)

    async def _load_index(self, segment: seg.Segment) -> None:
        """From its file, else from the data: needed once for what was there before this start."""
        if segment.indexed:
            return
        stored = await read_index(self._disk, self._state.directory, self._state.uid, segment.base_offset)
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
        walk = self._walk(segment, start)
        while (one := await walk.next()) is not None:
            if not isinstance(one, Damage):
                built.add(one.base_offset, one.position, one.timestamp)
        built.extend(segment.index, walked_end)  # what was written during the walk
        segment.index, segment.index_is_stored, segment.indexed = built, False, True
        self.rebuilt_indexes += 1

    def _walk(self, segment: seg.Segment, start: tuple[int, int]) -> SegmentWalk:
        memory, end = self._state.resources.memory, self._state.end_of(segment)
        return SegmentWalk(self._disk, self._files, self._settings, memory, segment, start, end)

    def _walk_to(self, segment: seg.Segment, offset: int) -> SegmentWalk:
        """The walk that an earlier poll has left here, or a new one from the index."""
        parked = self._state.resources.walks.take(segment, offset)
        if parked is not None:
            parked.end_offset = self._state.end_of(segment)
            return parked
        return self._walk(segment, segment.index.at_or_before(offset) or (segment.base_offset, fmt.BLOCK_BYTES))

    def _segment_of(self, offset: int) -> seg.Segment:
        bases = [segment.base_offset for segment in self._state.segments]
        return self._state.segments[max(0, bisect_right(bases, offset) - 1)]

    async def _read_segment(self, builder: ReadBuilder) -> None:
        """Take batches of one segment until the builder is full or the segment ends."""
        segment = self._segment_of(builder.next_offset)
        try:
            await self._load_index(segment)
            await self._take_batches(segment, builder)
        except CorruptionError:
            raise
        except StorageError:
            if segment in self._state.segments and not segment.closed:  # else it was deleted or closed meanwhile
                raise

    async def _take_batches(self, segment: seg.Segment, builder: ReadBuilder) -> None:
        walk = self._walk_to(segment, builder.next_offset)
        while (one := await walk.next()) is not None:
            if isinstance(one, Damage):
                if segment.index_is_stored:
                    await self._rebuild_index(segment)  # the index may be what is wrong: once more without it
                    return
                self._meet_damage(segment, one, builder)
            elif one.next_offset > builder.next_offset:
                builder.add(one.data, one.base_offset, one.message_count)
            if not builder.wants_more:
                if one.next_offset > builder.next_offset:
                    walk.put_back(one)
                self._state.resources.walks.park(walk, builder.next_offset)
                return

    def _meet_damage(self, segment: seg.Segment, damage: Damage, builder: ReadBuilder) -> None:
        if damage.next_offset <= builder.next_offset:
            return  # it lies before what is asked for
        if is_hole(segment, damage, self._following(segment)):
            builder.skip_to(damage.next_offset, self._state.high_watermark)
            return
        if damage.offset not in self._reported:  # a client may ask for it a thousand times a second
            self._reported.add(damage.offset)
            fields = {"path": segment.path, "position": damage.position, "offset": damage.offset}
            log.error("batch_damaged", extra={"fields": fields | {"next_offset": damage.next_offset}})
        if not self._settings.skip_damaged:
            raise CorruptionError(segment.path, damage.position, f"the batch with offset {damage.offset}")
        self.skipped_messages += damage.next_offset - builder.next_offset
        builder.skip_to(damage.next_offset, self._state.high_watermark)

    def _following(self, segment: seg.Segment) -> seg.Segment | None:
        segments = self._state.segments
        place = segments.index(segment) + 1 if segment in segments else len(segments)
        return segments[place] if place < len(segments) else None

    async def offset_at(self, timestamp: int) -> int:
        """The base offset of the first batch whose timestamp is not below `timestamp`; the high watermark if none.

        Raises:
            StorageError: the disk failed. NotOwnerError: as read.
        """
        self._check_open()
        for segment in list(self._state.segments):
            last = self._last_timestamp(segment)
            if last is not None and last < timestamp:
                continue
            try:
                found = await self._offset_in(segment, timestamp)
            except StorageError:
                self._check_open()
                raise
            if found is not None:
                return found
        for entry in self._state.tail.from_offset(self._state.flushed_end):
            if entry.timestamp >= timestamp:
                return min(entry.base_offset, self._state.high_watermark)
        return self._state.high_watermark

    def _last_timestamp(self, segment: seg.Segment) -> int | None:
        """Of a sealed segment; None: it is the last one, or was deleted meanwhile."""
        following = self._following(segment)
        return None if following is None else following.previous_timestamp

    async def _offset_in(self, segment: seg.Segment, timestamp: int) -> int | None:
        await self._load_index(segment)
        start = segment.index.before_timestamp(timestamp) or (segment.base_offset, fmt.BLOCK_BYTES)
        walk = self._walk(segment, start)
        while (one := await walk.next()) is not None:
            if not isinstance(one, Damage) and one.timestamp >= timestamp:
                return one.base_offset
        return None
