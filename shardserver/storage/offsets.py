"""Committed offsets of one shard, and their snapshot. Format: docs/formats/offsets.md."""

from __future__ import annotations

import os
import struct

import xxhash

from shardserver.errors import CorruptionError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.storage.disk import Disk
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted, write_synced

MAGIC = b"SSOFFST1"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, entries, journal id, covered sequence, checksum
_ENTRY = struct.Struct("<QIIQQ")  # uid, term, consumer kind, consumer id, offset

# (uid, consumer kind, consumer id)
OffsetKey = tuple[int, int, int]


def encode_snapshot(offsets: dict[OffsetKey, int], terms: dict[int, int], journal_id: int, covered: int) -> bytes:
    body = b"".join(
        _ENTRY.pack(uid, terms[uid], kind, consumer, offset) for (uid, kind, consumer), offset in offsets.items()
    )
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, len(offsets), journal_id, covered, 0)
    checksum = xxhash.xxh3_64_intdigest(head + body)
    return head[:-8] + checksum.to_bytes(8, "little") + body


def decode_snapshot(raw: memoryview, path: str) -> tuple[dict[OffsetKey, tuple[int, int]], int, int]:
    """((uid, kind, consumer) -> (term, offset), journal id, covered sequence).

    Raises:
        CorruptionError: not a whole snapshot of this version. A snapshot is renamed into place, so it is never torn.
    """
    if len(raw) < _HEADER.size:
        raise CorruptionError(path, 0, "a snapshot of committed offsets")
    magic, version, count, journal_id, covered, checksum = _HEADER.unpack_from(raw)
    end = _HEADER.size + count * _ENTRY.size
    body = bytes(raw[_HEADER.size : end])
    expected = xxhash.xxh3_64_intdigest(bytes(raw[: _HEADER.size - 8]) + bytes(8) + body)
    if magic != MAGIC or version != FORMAT_VERSION or end > len(raw) or expected != checksum:
        raise CorruptionError(path, 0, "a snapshot of committed offsets")
    entries = {}
    for uid, term, kind, consumer, offset in _ENTRY.iter_unpack(body):
        entries[(uid, kind, consumer)] = (term, offset)
    return entries, journal_id, covered


async def write_snapshot(disk: Disk, faults: SyncFaults, directory: str, raw: bytes) -> None:
    """Temporary file, sync, rename, directory sync."""
    building, target = os.path.join(directory, "offsets.new"), os.path.join(directory, "offsets")
    buffer = aligned_buffer(align_up(len(raw), 4096))
    buffer[: len(raw)] = raw
    since = faults.number
    await disk.unlink(building)
    file = await disk.open(building, create=True)
    await write_synced(disk, faults, file, 0, [buffer])
    await disk.close(file)
    await disk.rename(building, target)
    await sync_directory_noted(disk, faults, directory, since)


async def read_snapshot(disk: Disk, directory: str) -> tuple[dict[OffsetKey, tuple[int, int]], int, int]:
    """As decode_snapshot; nothing when there is none yet."""
    path = os.path.join(directory, "offsets")
    if "offsets" not in await disk.list_directory(directory):
        return {}, 0, 0
    file = await disk.open(path)
    buffer = aligned_buffer(max(4096, await disk.file_bytes(file)))
    got = await disk.read(file, 0, buffer)
    await disk.close(file)
    return decode_snapshot(buffer[:got], path)
