"""One segment file: a 4 KiB header, then runs. Format: docs/formats/segment.md."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.protocol.batch import check_stored_batch, read_batch_header
from shardserver.storage.disk import Disk, File
from shardserver.storage.index import SparseIndex
from shardserver.storage.journal_format import Hint
from shardserver.storage.synced_write import SyncFaults, cut_synced, sync_directory_noted, sync_noted, write_synced

BLOCK_BYTES = 4096
MAGIC = b"SSSEGMT1"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQQ")  # magic, version, flags, partition uid, base offset, last timestamp, checksum
FLAG_FOLLOWS_HOLE = 1
# Whatever else ends in .log is somebody else's and stays.
SEGMENT_NAME = re.compile(r"\d{20}\.log")
BATCH_HEADER_BYTES = 256
# The largest frame is 64 MiB, so is the largest batch.
MAX_BATCH_BYTES = 64 << 20
SCAN_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class Segment:
    """`end` is the synced end, block aligned; runs begin there.

    indexed: the index covers the whole segment. index_is_stored: it came from a file, so damage may be the index's own.
    closed: its file may not be opened any more. follows_hole: the offsets before it were taken out by a repair.
    first_timestamp: of its first message, in microseconds; 0: not known yet (first_timestamp).
    """

    path: str
    base_offset: int
    previous_timestamp: int = 0
    end: int = BLOCK_BYTES
    file: File | None = None
    index: SparseIndex = field(default_factory=SparseIndex)
    indexed: bool = True
    index_is_stored: bool = False
    index_saved_end: int = BLOCK_BYTES
    closed: bool = False
    follows_hole: bool = False
    first_timestamp: int = 0

    @property
    def data_bytes(self) -> int:
        return self.end - BLOCK_BYTES


def segment_path(directory: str, base_offset: int) -> str:
    return os.path.join(directory, f"{base_offset:020d}.log")


class SegmentHeader(NamedTuple):
    """last_timestamp: of the last message before this segment, in microseconds."""

    uid: int
    base_offset: int
    last_timestamp: int
    follows_hole: bool = False


def encode_header(header: SegmentHeader) -> bytes:
    """The first 4 KiB of a segment."""
    flags = FLAG_FOLLOWS_HOLE if header.follows_hole else 0
    raw = _HEADER.pack(MAGIC, FORMAT_VERSION, flags, header.uid, header.base_offset, header.last_timestamp, 0)
    return raw[:-8] + xxhash.xxh3_64_intdigest(raw).to_bytes(8, "little") + bytes(BLOCK_BYTES - _HEADER.size)


def decode_header(raw: memoryview) -> SegmentHeader | None:
    """None when the header is not valid."""
    if len(raw) < _HEADER.size:
        return None
    magic, version, flags, uid, base, last, checksum = _HEADER.unpack_from(raw)
    zeroed = bytes(raw[: _HEADER.size - 8]) + bytes(8)
    if magic != MAGIC or version != FORMAT_VERSION or checksum != xxhash.xxh3_64_intdigest(zeroed):
        return None
    return SegmentHeader(uid, base, last, bool(flags & FLAG_FOLLOWS_HOLE))


async def empty_segment(disk: Disk, faults: SyncFaults, segment: Segment) -> None:
    """Nothing but its header, durably, with its name, which a read-only start has not synced. Raises StorageError."""
    since = faults.number
    await rewrite_header(disk, faults, segment)
    await cut_synced(disk, faults, segment.file, BLOCK_BYTES)
    await sync_directory_noted(disk, faults, os.path.dirname(segment.path), since)


async def rewrite_header(disk: Disk, faults: SyncFaults, segment: Segment) -> None:
    """Put the same header there again, synced: after a process crash it may be in the device's cache only."""
    block = aligned_buffer(BLOCK_BYTES)
    await disk.read(segment.file, 0, block)
    await write_synced(disk, faults, segment.file, 0, [block])


async def first_timestamp(disk: Disk, segment: Segment) -> int:
    """Of the first message of an open segment that has one, in microseconds. Raises StorageError."""
    index = segment.index
    if not segment.first_timestamp and index.positions and index.positions[0] == BLOCK_BYTES:
        segment.first_timestamp = index.timestamps[0]
    if not segment.first_timestamp:
        block = aligned_buffer(BLOCK_BYTES)
        await disk.read(segment.file, BLOCK_BYTES, block)
        found = read_batch_header(block)
        # A damaged one does not say: the segment is not older than what came before it.
        is_first = found.base_offset == segment.base_offset
        segment.first_timestamp = found.base_timestamp if is_first else max(1, segment.previous_timestamp)
    return segment.first_timestamp


def next_batch_position(view: memoryview, position: int, expected_offset: int, *, base: int) -> int | None:
    """Where the batch with expected_offset begins: at position, or behind zeros at the next block boundary.

    base: the file position of view[0]. None when neither place holds a valid batch with that offset.
    """
    boundary = align_up(base + position, BLOCK_BYTES) - base
    places = [position]
    if boundary != position and boundary < len(view) and not any(view[position:boundary]):
        # Not instead of it: the next batch may begin with zeros (partition 0) just before the boundary.
        places = [position, boundary]
    for place in places:
        if check_stored_batch(view[place:], len(view) - place):
            return place if read_batch_header(view[place:]).base_offset == expected_offset else None
    return None


@dataclass(slots=True)
class StoredBatch:
    position: int
    base_offset: int
    message_count: int
    timestamp: int
    data: memoryview

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.message_count


def walk_batches(view: memoryview, base: int, offset: int) -> Iterator[StoredBatch]:
    """The valid batches from view[0] on, as long as offsets continue from `offset`. base: file position of view[0]."""
    position = 0
    while position < len(view):
        place = next_batch_position(view, position, offset, base=base)
        if place is None:
            return
        header = read_batch_header(view[place:])
        length = header.batch_length
        yield StoredBatch(
            base + place, offset, header.message_count, header.base_timestamp, view[place : place + length]
        )
        offset += header.message_count
        position = place + length


@dataclass(slots=True)
class ScanResult:
    """Where a segment ends: block aligned, with all before it whole."""

    end: int
    next_offset: int
    last_timestamp: int
    read_bytes: int


async def scan_segment(disk: Disk, segment: Segment, start: Hint, *, rewrite: SyncFaults | None) -> ScanResult:
    """Walk batches from a hint to the end, filling the index.

    The end is the last block boundary up to which all is whole: a run is padded, so what lies behind it belongs to a
    run that was never acknowledged, or is held by the journal too. With rewrite, the same bytes are put there again,
    synced: after a process crash they may be in the device's cache only (storage rule 16).
    """
    assert segment.file is not None
    result = ScanResult(start.position, start.next_offset, start.last_timestamp, 0)
    since = 0 if rewrite is None else rewrite.number
    file_bytes = await disk.file_bytes(segment.file)
    want = SCAN_BYTES
    while result.end < file_bytes:
        buffer = aligned_buffer(want)
        got = await disk.read(segment.file, result.end, buffer)
        result.read_bytes += got
        before = result.end
        _take_whole_blocks(segment, buffer[:got], result, at_end=before + got >= file_bytes)
        if result.end > before and rewrite is not None:
            await disk.write(segment.file, before, [buffer[: result.end - before]])
        if result.end == before:
            if got < want or want > MAX_BATCH_BYTES:
                break
            want *= 2  # a batch larger than what was read
        else:
            want = SCAN_BYTES
    if rewrite is not None and result.end > start.position:
        await sync_noted(disk, rewrite, segment.file, since)
    return result


def _take_whole_blocks(segment: Segment, view: memoryview, result: ScanResult, *, at_end: bool) -> None:
    """Take the runs that are whole in view. A run ends where the next batch begins at a block boundary.

    Zeros up to the boundary alone do not say so: they may be the first bytes of a batch of partition 0. At the end
    of the file nothing follows, and what is cut there is at worst the beginning of a torn batch.
    """
    start = result.end
    pending: list[StoredBatch] = []
    for batch in walk_batches(view, start, result.next_offset):
        if batch.position % BLOCK_BYTES == 0:
            _take_run(segment, pending, result)
        pending.append(batch)
    if pending and at_end:
        end = pending[-1].position + len(pending[-1].data)
        boundary = align_up(end, BLOCK_BYTES)
        if boundary - start <= len(view) and not any(view[end - start : boundary - start]):
            _take_run(segment, pending, result)


def _take_run(segment: Segment, pending: list[StoredBatch], result: ScanResult) -> None:
    for one in pending:
        segment.index.add(one.base_offset, one.position, one.timestamp)
        result.next_offset, result.last_timestamp = one.next_offset, one.timestamp
        result.end = align_up(one.position + len(one.data), BLOCK_BYTES)
    pending.clear()
