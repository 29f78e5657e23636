"""Reading segments: descriptors, batches in order, and what to do where they are damaged.

Damage is passed by three ways only, none of which looks at bytes that a producer chose: a damaged batch whose own
header is proved by the batch checksum tells its length; else the next index entry; else the next segment.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.protocol.batch import damaged_batch_extent, read_batch_header
from shardserver.storage import segment as seg
from shardserver.storage.disk import Disk, File
from shardserver.storage.journal_format import BLOCK_BYTES
from shardserver.storage.settings import LogSettings


@dataclass(frozen=True, slots=True)
class Damage:
    """No valid batch with `offset` stands at `position`; the next one that may be valid has `next_offset`."""

    position: int
    offset: int
    next_offset: int


class SegmentFiles:
    """Descriptors of a shard's segments. Sealed ones are closed again, least recently used first."""

    def __init__(self, disk: Disk, limit: int) -> None:
        self._disk, self._limit = disk, limit
        self._sealed: OrderedDict[seg.Segment, None] = OrderedDict()
        self._opening: dict[seg.Segment, asyncio.Future[File]] = {}

    def __len__(self) -> int:
        return len(self._sealed)

    async def get(self, segment: seg.Segment) -> File:
        """An open file; an operation submitted before the next await keeps it open until its end."""
        if segment.file is None:
            await self._open(segment)
        elif segment in self._sealed:
            self._sealed.move_to_end(segment)
        return segment.file

    async def _open(self, segment: seg.Segment) -> None:
        opening = self._opening.get(segment)
        if opening is not None:  # another reader is at it
            await asyncio.wait([opening])
        else:
            # Sealed: all of it was synced by a process whose lock on it is gone, so no lock is needed.
            opening = self._opening[segment] = self._disk.open(segment.path, lock=False)
            try:
                segment.file = await opening
            finally:
                del self._opening[segment]
            self.seal(segment)
        if segment.file is None:
            await self._open(segment)

    def seal(self, segment: seg.Segment) -> None:
        """Count the open file of a segment that takes no more runs."""
        self._sealed[segment] = None
        while len(self._sealed) > self._limit:
            oldest, _ = self._sealed.popitem(last=False)
            self._disk.close(oldest.file)
            oldest.file = None

    async def close(self, segment: seg.Segment) -> None:
        """For good: the segment is removed, or the log ends."""
        self._sealed.pop(segment, None)
        file, segment.file = segment.file, None
        if file is not None:
            await self._disk.close(file)


async def walk_segment(
    disk: Disk,
    files: SegmentFiles,
    segment: seg.Segment,
    settings: LogSettings,
    start: tuple[int, int],
    end_offset: int,
) -> AsyncIterator[seg.StoredBatch | Damage]:
    """Batches of a segment from `start` (offset, position) until end_offset, and each place that is damaged.

    Reads grow from settings.read_bytes to settings.read_ahead_bytes, as sequential readers go on.
    """
    expected, position = start
    want = settings.read_bytes
    while expected < end_offset:
        view, is_end = await _read(disk, await files.get(segment), position, want)
        before = expected
        for batch in seg.walk_batches(view, position, expected):
            expected, position = batch.next_offset, batch.position + len(batch.data)
            yield batch
        if expected > before:
            want = min(want * 2, settings.read_ahead_bytes)
            continue
        needed = _bytes_to_judge(view, position, expected)
        if needed > len(view) and not is_end:
            want = needed
            continue
        next_offset, next_position = _step_over(view, segment, position, expected, end_offset)
        yield Damage(position, expected, next_offset)
        expected, position, want = next_offset, next_position, settings.read_bytes


async def _read(disk: Disk, file: File, position: int, want: int) -> tuple[memoryview, bool]:
    """At least `want` bytes from position, and whether the file ended before."""
    aligned = position - position % BLOCK_BYTES
    buffer = aligned_buffer(align_up(position - aligned + want, BLOCK_BYTES))
    got = await disk.read(file, aligned, buffer)
    return buffer[position - aligned : got], got < len(buffer)


def _places(view: memoryview, base: int) -> list[int]:
    """Where in view a batch may begin: at its start, or at the next block boundary."""
    boundary = align_up(base, BLOCK_BYTES) - base
    return [0, boundary] if boundary else [0]


def _bytes_to_judge(view: memoryview, base: int, expected: int) -> int:
    """How many bytes from view[0] on must be there to say whether the expected batch is valid."""
    places = _places(view, base)
    needed = places[-1] + seg.BATCH_HEADER_BYTES
    if len(view) < needed:
        return needed
    for place in places:
        header = read_batch_header(view[place:])
        if header.base_offset == expected and header.batch_length <= seg.MAX_BATCH_BYTES:
            needed = max(needed, place + header.batch_length)
    return needed


def _step_over(
    view: memoryview, segment: seg.Segment, position: int, expected: int, end_offset: int
) -> tuple[int, int]:
    """(offset, position) at which to go on behind the damage; end_offset when this segment has no such place."""
    for place in _places(view, position):
        length = damaged_batch_extent(view[place:]) if place < len(view) else 0
        if length:
            header = read_batch_header(view[place:])
            if header.base_offset == expected:
                return expected + header.message_count, position + place + length
    return segment.index.after(expected) or (end_offset, segment.end)
