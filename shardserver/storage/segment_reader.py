"""Reading segments: descriptors, batches in order, and what to do where they are damaged.

Damage is passed by three ways only, none of which looks at bytes that a producer chose: a damaged batch whose own
header is proved by the batch checksum tells its length; else the next index entry; else the next segment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from dataclasses import dataclass

from shardserver.errors import ArenaFullError, StorageError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.memory.arena import Arena
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


def is_hole(segment: seg.Segment, found: Damage, following: seg.Segment | None) -> bool:
    """All of the segment is good, and its successor says that a repair has taken out what came between."""
    if following is None or not following.follows_hole or found.next_offset != following.base_offset:
        return False
    return align_up(found.position, BLOCK_BYTES) >= segment.end


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
            if segment.closed:
                raise StorageError(f"{segment.path} was closed")
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
            if segment.closed:
                await self.close(segment)
            else:
                self.seal(segment)
        if segment.closed:
            raise StorageError(f"{segment.path} was closed")
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
        """For good: the segment is removed, moves to another shard, or the log ends."""
        segment.closed = True
        self._sealed.pop(segment, None)
        file, segment.file = segment.file, None
        if file is not None:
            await self._disk.close(file)


def read_buffer(memory: Arena, size: int) -> memoryview:
    """Memory for a read of whole pages: of the arena, so that peers can take a reply from there, while a quarter of it
    stays free for appends, which have no other place. Else of the heap.
    """
    if memory.used_bytes + size <= memory.bytes - memory.bytes // 4:
        with contextlib.suppress(ArenaFullError):
            return memoryview(memory.allocate(size))
    return aligned_buffer(size)


class PendingRead:
    """A read under way; `position` need not be aligned."""

    def __init__(self, disk: Disk, memory: Arena, file: File, position: int, want: int) -> None:
        self.position = position
        self._skipped = position % BLOCK_BYTES
        self._buffer = read_buffer(memory, align_up(self._skipped + want, BLOCK_BYTES))
        self._done = disk.read(file, position - self._skipped, self._buffer)
        self._done.add_done_callback(_look_at)

    async def result(self) -> tuple[memoryview, bool]:
        """What stands at `position`, and whether the file ended before all that was wanted."""
        got = await asyncio.shield(self._done)
        return self._buffer[self._skipped : got], got < len(self._buffer)


def _look_at(done: asyncio.Future[int]) -> None:
    """A read that nobody waits for any more may fail without a word."""
    if not done.cancelled():
        done.exception()


class SegmentWalk:
    """Batches of a segment from `start` (offset, position) until end_offset, and each place that is damaged.

    Reads grow from settings.read_bytes to settings.read_ahead_bytes. From the second one on the next is under way while
    what was read is handed out. Nothing behind end_offset is kept: a run there may fail and be written otherwise.
    """

    def __init__(
        self,
        disk: Disk,
        files: SegmentFiles,
        settings: LogSettings,
        memory: Arena,
        segment: seg.Segment,
        start: tuple[int, int],
        end_offset: int,
    ) -> None:
        self._disk, self._files, self._settings, self._memory = disk, files, settings, memory
        self.segment, self.end_offset = segment, end_offset
        self._expected, self._position = start
        self._want = settings.read_bytes
        self._due: deque[seg.StoredBatch | Damage] = deque()
        self._ahead: PendingRead | None = None
        self._view_bytes = 0

    @property
    def is_small(self) -> bool:
        """It holds settings.read_ahead_bytes at most, and as much under way; a huge batch makes it more."""
        return self._view_bytes <= self._settings.read_ahead_bytes + 2 * BLOCK_BYTES

    async def next(self) -> seg.StoredBatch | Damage | None:
        """None at end_offset. Raises StorageError: the disk failed, or the segment was deleted."""
        while not self._due:
            if self._expected >= self.end_offset:
                return None
            await self._read_more()
        return self._due.popleft()

    def put_back(self, one: seg.StoredBatch | Damage) -> None:
        self._due.appendleft(one)

    async def _read_more(self) -> None:
        view, is_end = await self._read()
        self._view_bytes = len(view)
        before = self._expected
        for batch in seg.walk_batches(view, self._position, self._expected):
            if batch.next_offset > self.end_offset:
                break
            self._due.append(batch)
            self._expected, self._position = batch.next_offset, batch.position + len(batch.data)
        if self._expected > before:
            self._grow()
            return
        needed = _bytes_to_judge(view, self._position, self._expected)
        if needed > len(view) and not is_end:
            self._want = needed
            return
        if self.segment.closed:  # deleted: a file that was still open lost its bytes
            raise StorageError(f"{self.segment.path} was closed")
        next_offset, position = _step_over(view, self.segment, self._position, self._expected, self.end_offset)
        self._due.append(Damage(self._position, self._expected, next_offset))
        self._expected, self._position, self._want = next_offset, position, self._settings.read_bytes

    async def _read(self) -> tuple[memoryview, bool]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.position == self._position:
            view, is_end = await ahead.result()
            if not is_end:  # else the segment may have grown since
                return view, is_end
        file = await self._files.get(self.segment)
        return await PendingRead(self._disk, self._memory, file, self._position, self._want).result()

    def _grow(self) -> None:
        """The reader goes on: larger reads, and, if it has done so before, the next one at once."""
        left, file = self.segment.end - self._position, self.segment.file
        goes_on = self._want > self._settings.read_bytes and self._expected < self.end_offset
        if goes_on and left > 0 and file is not None:
            self._ahead = PendingRead(self._disk, self._memory, file, self._position, min(self._want, left))
        self._want = min(self._want * 2, self._settings.read_ahead_bytes)


class ParkedWalks:
    """Walks whose reader is expected to come back for what follows: a poll ends, the next one goes on from there.

    Each keeps at most two reads of settings.read_ahead_bytes in memory; the least recently parked one goes first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parked: OrderedDict[tuple[seg.Segment, int], SegmentWalk] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, walk: SegmentWalk, next_offset: int) -> None:
        if walk.is_small:
            self._parked[walk.segment, next_offset] = walk
        if len(self._parked) > self._limit:
            self._parked.popitem(last=False)

    def take(self, segment: seg.Segment, offset: int) -> SegmentWalk | None:
        return self._parked.pop((segment, offset), None)

    def drop_oldest(self) -> bool:
        """Give up one walk for its memory; its reader will read from disk again. False: there is none."""
        if not self._parked:
            return False
        self._parked.popitem(last=False)
        return True

    def forget(self, segment: seg.Segment) -> None:
        """It is deleted, or nobody reads on in it."""
        for key in [key for key in self._parked if key[0] is segment]:
            del self._parked[key]


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
