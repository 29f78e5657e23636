"""The file that says what a partition's directory belongs to. Format: docs/formats/identity.md.

The payload is the metadata's own and opaque here. A directory without a good one loses nothing but its name.
"""

from __future__ import annotations

import contextlib
import os
import struct

import xxhash

from shardserver.errors import StorageError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.storage.disk import Act, Disk, Step
from shardserver.storage.synced_write import SyncFaults, do_steps_noted

MAGIC = b"SSIDENT1"
FORMAT_VERSION = 1
BLOCK_BYTES = 4096
NAME = "identity"
_HEADER = struct.Struct("<8sIIQQ")  # magic, version, payload bytes, partition uid, checksum


def encode_identity(uid: int, payload: bytes) -> bytes:
    """Without the padding."""
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, len(payload), uid, 0)
    return head[:-8] + xxhash.xxh3_64_intdigest(head + payload).to_bytes(8, "little") + payload


def decode_identity(raw: memoryview, uid: int) -> bytes | None:
    """The payload; None when raw is not the whole identity of this partition."""
    if len(raw) < _HEADER.size:
        return None
    magic, version, length, found_uid, checksum = _HEADER.unpack_from(raw)
    end = _HEADER.size + length
    if (magic, version, found_uid) != (MAGIC, FORMAT_VERSION, uid) or end > len(raw):
        return None
    payload = bytes(raw[_HEADER.size : end])
    zeroed = bytes(raw[: _HEADER.size - 8]) + bytes(8)
    return payload if xxhash.xxh3_64_intdigest(zeroed + payload) == checksum else None


def identity_block(uid: int, payload: bytes) -> memoryview:
    """The whole file."""
    raw = encode_identity(uid, payload)
    buffer = aligned_buffer(align_up(len(raw), BLOCK_BYTES))
    buffer[: len(raw)] = raw
    return buffer


def build_steps(chain: int, directory: str, block: memoryview) -> list[Step]:
    """Writes it beside its place; rename_steps, once it is synced, puts it there."""
    building = os.path.join(directory, NAME + ".new")
    return [Step(Act.UNLINK, chain, building), Step(Act.CREATE, chain, building, block)]


def rename_steps(chain: int, directory: str) -> list[Step]:
    """Behind them the directory has to be synced."""
    path = os.path.join(directory, NAME)
    return [Step(Act.CLOSE, chain, path + ".new"), Step(Act.RENAME, chain, path + ".new", path)]


def sync_step(chain: int, directory: str) -> Step:
    return Step(Act.SYNC, chain, os.path.join(directory, NAME + ".new"))


async def write_identity(disk: Disk, faults: SyncFaults, directory: str, uid: int, payload: bytes) -> None:
    """Durable when it returns. Raises StorageError: the former one, if any, is still there or the new one is."""
    steps = [*build_steps(0, directory, identity_block(uid, payload)), sync_step(0, directory)]
    steps += [*rename_steps(0, directory), Step(Act.SYNC_DIRECTORY, 0, directory)]
    (error,), _ = await do_steps_noted(disk, faults, 1, steps)
    if error is not None:
        raise error


async def read_identity(disk: Disk, directory: str, uid: int) -> bytes | None:
    """The payload; None when there is no good one."""
    try:
        file = await disk.open(os.path.join(directory, NAME), lock=False)
    except StorageError:
        return None
    payload = None
    with contextlib.suppress(StorageError):
        buffer = aligned_buffer(max(BLOCK_BYTES, await disk.file_bytes(file)))
        payload = decode_identity(buffer[: await disk.read(file, 0, buffer)], uid)
    await disk.close(file)
    return payload
