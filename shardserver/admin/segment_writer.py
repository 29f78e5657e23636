"""Whole batches into new segment files, in a directory of their own until all of them are synced."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.storage import segment as seg
from shardserver.storage.disk import Disk
from shardserver.storage.new_segments import create_segment
from shardserver.storage.synced_write import SyncFaults, write_synced

RUN_BYTES = 4 << 20


@dataclass(slots=True)
class SegmentWriter:
    """`begin` a segment, `add` its batches in order, `end`. Raises StorageError; nothing stands in its place then."""

    disk: Disk
    directory: str
    uid: int
    faults: SyncFaults = field(default_factory=SyncFaults)
    made: list[str] = field(default_factory=list)
    last_timestamp: int = 0
    _segment: seg.Segment | None = None
    _run: list[bytes] = field(default_factory=list)
    _run_bytes: int = 0

    async def clear(self) -> None:
        """The directory, empty: a repair that was interrupted may have left files in it."""
        await self.disk.make_directory(self.directory)
        for name in await self.disk.list_directory(self.directory):
            await self.disk.unlink(os.path.join(self.directory, name))

    async def begin(self, base_offset: int, *, follows_hole: bool) -> None:
        await self.end()
        header = seg.SegmentHeader(self.uid, base_offset, self.last_timestamp, follows_hole)
        self._segment = await create_segment(self.disk, self.faults, self.directory, header)
        self.made.append(os.path.basename(self._segment.path))

    async def add(self, data: memoryview, timestamp: int) -> None:
        self.last_timestamp = max(self.last_timestamp, timestamp)
        self._run.append(bytes(data))
        self._run_bytes += len(data)
        if self._run_bytes >= RUN_BYTES:
            await self._write_run()

    async def _write_run(self) -> None:
        assert self._segment is not None
        size = align_up(self._run_bytes, seg.BLOCK_BYTES)
        buffer = aligned_buffer(size)[:size]
        buffer[: self._run_bytes] = b"".join(self._run)
        await write_synced(self.disk, self.faults, self._segment.file, self._segment.end, [buffer])
        self._segment.end += size
        self._run, self._run_bytes = [], 0

    async def end(self) -> None:
        if self._segment is None:
            return
        if self._run:
            await self._write_run()
        await self.disk.close(self._segment.file)
        self._segment = None

    async def publish(self, directory: str) -> None:
        """Into their place, highest base offset first, so that none is ever read as one with a hole unmarked."""
        await self.end()
        for name in sorted(self.made, reverse=True):
            await self.disk.rename(os.path.join(self.directory, name), os.path.join(directory, name))
        self.made.clear()
        await self.disk.sync_directory(directory)
        await self.disk.remove_directory(self.directory)
