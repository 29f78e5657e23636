"""Batches as a producer sends them (messages.md 1-2)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import xxhash

from shardserver.protocol.batch import BATCH_HEADER_BYTES

# id, offset delta, timestamp delta, user headers' length, payload's length, reserved.
_FRAME = struct.Struct("<16sIIIIQ")
_HEAD = struct.Struct("<QQQQQ")


def encode_batch(payloads: Sequence[bytes], *, origin_timestamp: int = 0) -> bytes:
    """One batch with ids 1, 2, 3 …, no user headers.

    Args:
        payloads: at least one message's bytes each.
        origin_timestamp: microseconds since the epoch, the same for all messages.
    """
    frames = [_encode_frame(index, payload) for index, payload in enumerate(payloads)]
    head = _HEAD.pack(0, 0, 0, origin_timestamp, BATCH_HEADER_BYTES + sum(map(len, frames)))
    count = len(frames).to_bytes(4, "little")
    checksum = xxhash.xxh3_64_intdigest(head + count + b"".join(frame[:8] for frame in frames))
    reserved = bytes(BATCH_HEADER_BYTES - len(head) - 8 - len(count))
    return b"".join((head, checksum.to_bytes(8, "little"), count, reserved, *frames))


def _encode_frame(index: int, payload: bytes) -> bytes:
    covered = _FRAME.pack((index + 1).to_bytes(16, "little"), index, 0, 0, len(payload), 0) + payload
    return xxhash.xxh3_64_intdigest(covered).to_bytes(8, "little") + covered
