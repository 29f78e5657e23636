"""batch.pyx in plain Python: the readable specification of what it does, and its partner in tests (messages.md 1-2).

A server uses batch.pyx. Both give the same results and errors for any bytes: tests/protocol/test_batch.py.
Every length that a peer wrote goes through `frame_end`, which proves that the frame lies in the buffer.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from shardserver.memory.buffers import Buffer, WritableBuffer

BATCH_HEADER_BYTES, FRAME_HEADER_BYTES = 256, 48
BAD_STRUCTURE, BAD_MESSAGE, BAD_BATCH = 3, 4027, 4039

_HEADER = struct.Struct("<QQQQQQI")
_STAMPS = struct.Struct("<QQQ")
_U64, _U32 = struct.Struct("<Q"), struct.Struct("<I")


class BatchHeader(NamedTuple):
    """Fields in the order of the wire."""

    partition_id: int
    base_offset: int
    base_timestamp: int
    origin_timestamp: int
    batch_length: int
    batch_checksum: int
    message_count: int


def _u32(data: memoryview, position: int) -> int:
    return int(_U32.unpack_from(data, position)[0])


def _u64(data: memoryview, position: int) -> int:
    return int(_U64.unpack_from(data, position)[0])


def frame_end(data: memoryview, position: int) -> int:
    """Where the message frame at position ends; 0 when it does not lie in data."""
    if len(data) - position < FRAME_HEADER_BYTES:
        return 0
    headers_bytes, payload_bytes = _u32(data, position + 32), _u32(data, position + 36)
    end = position + FRAME_HEADER_BYTES + headers_bytes + payload_bytes
    return end if end <= len(data) else 0


def _batch_checksum(data: memoryview) -> int:
    """Over header 0..40, 48..52 and each frame's stored checksum, up to the first frame that does not lie in data."""
    state, position = xxhash.xxh3_64(), BATCH_HEADER_BYTES
    state.update(data[:40])
    state.update(data[48:52])
    while position < len(data):
        end = frame_end(data, position)
        if end == 0:
            break
        state.update(data[position : position + 8])
        position = end
    return state.intdigest()


def _walk(data: memoryview, count: int) -> int:
    """The code for the frames after the header: are they `count`, do they fill data, with deltas 0, 1, 2 …?

    A broken structure is told before a wrong message checksum, wherever each is.
    """
    position, index, code = BATCH_HEADER_BYTES, 0, 0
    while position < len(data):
        end = frame_end(data, position)
        if end == 0 or index == count or _u64(data, position + 40) != 0 or _u32(data, position + 24) != index:
            return BAD_STRUCTURE
        if code == 0 and xxhash.xxh3_64_intdigest(data[position + 8 : end]) != _u64(data, position):
            code = BAD_MESSAGE
        position, index = end, index + 1
    return code if index == count else BAD_STRUCTURE


def _reserved_is_zero(data: memoryview) -> bool:
    return not any(data[52:BATCH_HEADER_BYTES])


def verify_batch(batch: Buffer, count: int) -> int:
    """Check a batch from a producer (structure, message checksums, batch checksum).

    Returns: 0, or the code to answer: 3, 4027 or 4039. Never raises on the bytes' content.
    """
    data = memoryview(batch)
    if len(data) < BATCH_HEADER_BYTES or _u64(data, 32) != len(data) or _u32(data, 48) != count or count == 0:
        return BAD_STRUCTURE
    if not _reserved_is_zero(data):
        return BAD_STRUCTURE
    code = _walk(data, count)
    if code == 0 and _batch_checksum(data) != _u64(data, 40):
        return BAD_BATCH
    return code


def stamp_batch(batch: WritableBuffer, partition_id: int, base_offset: int, base_timestamp: int) -> None:
    """Put the server's three fields into the header of a verified batch, in place, and its new checksum.

    Raises ValueError when there are fewer than 256 bytes.
    """
    data = memoryview(batch)
    _refuse_short(data)
    _STAMPS.pack_into(data, 0, partition_id, base_offset, base_timestamp)
    _U64.pack_into(data, 40, _batch_checksum(data))


def _refuse_short(data: memoryview) -> None:
    if len(data) < BATCH_HEADER_BYTES:
        raise ValueError(f"a batch header of {BATCH_HEADER_BYTES} bytes, got {len(data)}")


def _told_length(data: memoryview) -> int:
    """batch_length of the batch at data[0]; 0 when data does not hold as much."""
    if len(data) < BATCH_HEADER_BYTES:
        return 0
    length = _u64(data, 32)
    return length if BATCH_HEADER_BYTES <= length <= len(data) else 0


def check_stored_batch(view: Buffer, limit: int) -> int:
    """Length of the valid stored batch at view[0] (all checksums good), at most `limit`; 0 when there is none."""
    data = memoryview(view)
    length = _told_length(data)
    if length == 0 or length > limit:
        return 0
    return length if verify_batch(data[:length], _u32(data, 48)) == 0 else 0


def damaged_batch_extent(view: Buffer) -> int:
    """Length of the batch at view[0] whose header and framing are proved by the batch checksum, whatever its messages
    hold; 0 when they are not. For stepping over a batch that check_stored_batch refuses.
    """
    data = memoryview(view)
    length = _told_length(data)
    if length == 0 or not _reserved_is_zero(data):
        return 0
    if _u32(data, 48) == 0:  # it would cover no offset, and whoever steps over it not move
        return 0
    framed = data[:length]
    if _walk(framed, _u32(data, 48)) == BAD_STRUCTURE or _batch_checksum(framed) != _u64(data, 40):
        return 0
    return length


def read_batch_header(view: Buffer) -> BatchHeader:
    """The header's fields. Raises ValueError when there are fewer than 256 bytes."""
    data = memoryview(view)
    _refuse_short(data)
    return BatchHeader(*_HEADER.unpack_from(data))


def slice_batch(batch: Buffer, first_delta: int, last_delta: int) -> bytes:
    """A copy of a valid batch with its messages first_delta..last_delta only, header rewritten (messages.md 2.2).

    Raises ValueError when there are fewer than 256 bytes, or a frame reaches past the batch.
    """
    data = memoryview(batch)
    _refuse_short(data)
    position, start, stop, count = BATCH_HEADER_BYTES, 0, 0, 0
    while position < len(data):
        end = frame_end(data, position)
        if end == 0:
            raise ValueError("a frame reaches past its batch")
        if first_delta <= _u32(data, position + 24) <= last_delta:
            start = position if count == 0 else start
            stop, count = end, count + 1
        position = end
    result = bytearray(data[:BATCH_HEADER_BYTES]) + data[start:stop]
    _U64.pack_into(result, 32, len(result))
    _U32.pack_into(result, 48, count)
    _U64.pack_into(result, 40, _batch_checksum(memoryview(result)))
    return bytes(result)
