"""Repair of one partition's segments: what is damaged is taken out, the segment behind it is marked (segment.md).

Nothing is written over messages. A damaged segment gets a second name in `set-aside` before new files take its place; a
crash in between leaves a directory that the next repair goes on with.
"""

from __future__ import annotations

import os

from shardserver.admin.kept import Kept
from shardserver.admin.partition_check import PartitionReport, SegmentReport, walk_segment
from shardserver.admin.segment_writer import SegmentWriter
from shardserver.memory.aligned import aligned_buffer
from shardserver.memory.arena import Arena
from shardserver.storage import segment as seg
from shardserver.storage.directory import make_synced_directory
from shardserver.storage.disk import Disk
from shardserver.storage.index import index_path
from shardserver.storage.new_segments import create_segment
from shardserver.storage.segment_reader import Damage, SegmentFiles
from shardserver.storage.synced_write import SyncFaults, write_synced


class PartitionRepair:
    """report: of a check that has ended; it is out of date when the repair has."""

    def __init__(self, disk: Disk, data: str, report: PartitionReport, kept: Kept, memory: Arena) -> None:
        self._disk, self._report, self._kept, self._memory = disk, report, kept, memory
        self._faults = SyncFaults()
        self._building = os.path.join(data, "set-aside", "building")

    async def run(self) -> None:
        """Raises StorageError: the disk failed; what was kept so far is in place."""
        await self._disk.make_directory(os.path.dirname(self._building))
        for one in self._report.segments:
            if one.header is None:
                await self._rewrite_header(one, follows_hole=False)
        # From the last one: what is written for a segment may mark the one behind it.
        for number in range(len(self._report.segments) - 1, -1, -1):
            if self._report.segments[number].damages:
                await self._take_out(number)
        if self._report.missing is not None:
            await self._add_empty(self._report.missing, self._last_timestamp(len(self._report.segments)))

    def _last_timestamp(self, number: int) -> int:
        """What is known of the time before a segment: the newest that a header before it tells."""
        return max((one.header.last_timestamp for one in self._report.segments[:number] if one.header), default=0)

    async def _rewrite_header(self, one: SegmentReport, *, follows_hole: bool) -> None:
        """In place. It holds no message; name and directory say what was in it."""
        segment, block = one.segment, aligned_buffer(seg.BLOCK_BYTES)
        file = await self._disk.open(segment.path)
        try:
            got = await self._disk.read(file, 0, block)
            await self._kept.write(segment.path + ".header", bytes(block[:got]))
            number = self._report.segments.index(one)
            timestamp = one.header.last_timestamp if one.header else self._last_timestamp(number)
            header = seg.SegmentHeader(self._report.uid, segment.base_offset, timestamp, follows_hole)
            block[:] = seg.encode_header(header)
            await write_synced(self._disk, self._faults, file, 0, [block])
        finally:
            await self._disk.close(file)
        one.header = header

    async def _take_out(self, number: int) -> None:
        """The good batches into segments of their own, in the place of the damaged one."""
        one = self._report.segments[number]
        writer = SegmentWriter(self._disk, self._building, self._report.uid)
        await writer.clear()
        goes_on_at = await self._copy(one, writer)
        is_last = number + 1 == len(self._report.segments)
        if goes_on_at is not None and is_last:
            await writer.begin(goes_on_at, follows_hole=True)
        elif goes_on_at is not None:
            await self._rewrite_header(self._report.segments[number + 1], follows_hole=True)
        await self._replace(one, writer)

    async def _copy(self, one: SegmentReport, writer: SegmentWriter) -> int | None:
        """Gives the offset that follows damage at the segment's end; None: its last message is good."""
        assert one.header is not None
        segment = one.segment
        segment.file = await self._disk.open(segment.path)
        start = (segment.base_offset, seg.BLOCK_BYTES)
        walk = walk_segment(self._disk, SegmentFiles(self._disk, 1), self._memory, segment, start, one.end_offset)
        writer.last_timestamp = one.header.last_timestamp
        goes_on_at: int | None = None
        due: tuple[int, bool] | None = (segment.base_offset, one.header.follows_hole)
        try:
            while (found := await walk.next()) is not None:
                if isinstance(found, Damage):
                    due, goes_on_at = (found.next_offset, True), found.next_offset
                    continue
                if due is not None:
                    await writer.begin(due[0], follows_hole=due[1])
                    due = goes_on_at = None
                await writer.add(found.data, found.timestamp)
        finally:
            await self._disk.close(segment.file)
            segment.file = None
        return goes_on_at

    async def _replace(self, one: SegmentReport, writer: SegmentWriter) -> None:
        path, directory = one.segment.path, self._report.directory
        await self._kept.link(path)
        is_replaced = os.path.basename(path) in writer.made
        await self._disk.unlink(index_path(directory, one.segment.base_offset))
        await writer.publish(directory)
        if not is_replaced:  # nothing before the first damage
            await self._disk.unlink(path)
            await self._disk.sync_directory(directory)

    async def _add_empty(self, base_offset: int, last_timestamp: int) -> None:
        """A segment that says where offsets go on."""
        directory = self._report.directory
        await make_synced_directory(self._disk, self._faults, directory)
        header = seg.SegmentHeader(self._report.uid, base_offset, last_timestamp, follows_hole=True)
        made = await create_segment(self._disk, self._faults, directory, header)
        await self._disk.close(made.file)


async def move_indexes(report: PartitionReport, kept: Kept) -> None:
    """Raises StorageError."""
    for path in report.bad_indexes:
        if os.path.exists(path):  # a repair of its segment has removed it
            await kept.move(path)
