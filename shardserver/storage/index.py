"""The sparse index of a segment, in memory and as a file. Format: docs/formats/index.md.

A hint only: each position is verified against the batch that stands there, so the file needs no sync, and a missing,
torn or stale one costs time, never data.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import xxhash

from shardserver.errors import StorageError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.storage.disk import Disk

INDEX_INTERVAL_BYTES = 64 * 1024
MAGIC = b"SSINDEX1"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, entries, partition uid, base offset, checksum
_ENTRY = struct.Struct("<QQQ")  # offset, position, timestamp


@dataclass(slots=True)
class SparseIndex:
    """Where batches begin, about every 64 KiB, in rising order."""

    offsets: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)

    def next_mark(self, end: int) -> int:
        """How many bytes behind position `end` the next entry is due."""
        return max(0, self.positions[-1] + INDEX_INTERVAL_BYTES - end) if self.positions else 0

    def add(self, offset: int, position: int, timestamp: int) -> None:
        if not self.positions or position - self.positions[-1] >= INDEX_INTERVAL_BYTES:
            self.offsets.append(offset)
            self.positions.append(position)
            self.timestamps.append(timestamp)

    def at_or_before(self, offset: int) -> tuple[int, int] | None:
        """(offset, position) of the nearest entry that is not behind `offset`."""
        place = bisect_right(self.offsets, offset) - 1
        return None if place < 0 else (self.offsets[place], self.positions[place])

    def after(self, offset: int) -> tuple[int, int] | None:
        """(offset, position) of the first entry behind `offset`."""
        place = bisect_right(self.offsets, offset)
        return None if place == len(self.offsets) else (self.offsets[place], self.positions[place])

    def before_timestamp(self, timestamp: int) -> tuple[int, int] | None:
        """The last entry whose batch is older than `timestamp`."""
        place = bisect_left(self.timestamps, timestamp) - 1
        return None if place < 0 else (self.offsets[place], self.positions[place])

    def extend(self, later: SparseIndex, position: int) -> None:
        """Take the entries of `later` from `position` on; ours lie before it."""
        keep = bisect_left(later.positions, position)
        self.offsets += later.offsets[keep:]
        self.positions += later.positions[keep:]
        self.timestamps += later.timestamps[keep:]

    def cut(self, position: int) -> None:
        """Forget the entries from `position` on."""
        keep = bisect_left(self.positions, position)
        del self.offsets[keep:], self.positions[keep:], self.timestamps[keep:]


def index_path(directory: str, base_offset: int) -> str:
    return os.path.join(directory, f"{base_offset:020d}.index")


def encode_index(index: SparseIndex, uid: int, base_offset: int) -> bytes:
    entries = zip(index.offsets, index.positions, index.timestamps, strict=True)
    body = b"".join(_ENTRY.pack(*entry) for entry in entries)
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, len(index.offsets), uid, base_offset, 0)
    return head[:-8] + xxhash.xxh3_64_intdigest(head + body).to_bytes(8, "little") + body


def decode_index(raw: memoryview, uid: int, base_offset: int) -> SparseIndex | None:
    """None when raw is not a whole index of this segment."""
    if len(raw) < _HEADER.size:
        return None
    magic, version, count, found_uid, found_base, checksum = _HEADER.unpack_from(raw)
    end = _HEADER.size + count * _ENTRY.size
    if (magic, version, found_uid, found_base) != (MAGIC, FORMAT_VERSION, uid, base_offset) or end > len(raw):
        return None
    body = bytes(raw[_HEADER.size : end])
    if checksum != xxhash.xxh3_64_intdigest(bytes(raw[: _HEADER.size - 8]) + bytes(8) + body):
        return None
    index = SparseIndex()
    for offset, position, timestamp in _ENTRY.iter_unpack(body):
        index.offsets.append(offset)
        index.positions.append(position)
        index.timestamps.append(timestamp)
    return index


async def write_index(disk: Disk, directory: str, index: SparseIndex, uid: int, base_offset: int) -> None:
    """Write beside, rename into place, no sync. Raises StorageError, after which the former file may be gone."""
    raw, path = encode_index(index, uid, base_offset), index_path(directory, base_offset)
    buffer = aligned_buffer(align_up(len(raw), 4096))
    buffer[: len(raw)] = raw
    await disk.unlink(path + ".new")
    file = await disk.open(path + ".new", create=True)
    try:
        await disk.write(file, 0, [buffer])
    finally:
        await disk.close(file)
    await disk.rename(path + ".new", path)


async def read_index(disk: Disk, directory: str, uid: int, base_offset: int) -> SparseIndex | None:
    """The stored index, or None when there is no good one."""
    try:
        # Nobody waits for its last writer: a torn index is no index.
        file = await disk.open(index_path(directory, base_offset), lock=False)
    except StorageError:
        return None
    try:
        buffer = aligned_buffer(max(4096, await disk.file_bytes(file)))
        return decode_index(buffer[: await disk.read(file, 0, buffer)], uid, base_offset)
    except StorageError:
        return None
    finally:
        await disk.close(file)
