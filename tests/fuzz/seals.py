"""Puts good checksums on damaged bytes: a fuzzer guesses lengths and counts, but no XXH3.

Every input of a target that seals has a first byte; SEALED in it asks for the seal. Both kinds are tried: without it
the checksum is what is tested, with it all that lies behind the checksum.
"""

from __future__ import annotations

import struct

import xxhash

from shardserver.protocol.batch_python import BATCH_HEADER_BYTES, frame_end

SEALED = 1
_LENGTH_AT, _CHECKSUM_AT, _COUNT_AT = 32, 40, 48


def seal_at(raw: bytearray, place: int, end: int) -> None:
    """The XXH3-64 of raw[:end], with zeros in its own place, at `place`; nothing when raw is too short."""
    if len(raw) >= place + 8:
        raw[place : place + 8] = bytes(8)
        raw[place : place + 8] = xxhash.xxh3_64_intdigest(bytes(raw[:end])).to_bytes(8, "little")


def seal_batch(raw: bytearray) -> None:
    """All checksums of the one batch that begins at raw[0] and ends where its header says, or with raw."""
    if len(raw) < BATCH_HEADER_BYTES:
        return
    length = min(len(raw), struct.unpack_from("<Q", raw, _LENGTH_AT)[0])
    position, sums = BATCH_HEADER_BYTES, b""
    while position < length and (end := frame_end(memoryview(raw)[:length], position)):
        checksum = xxhash.xxh3_64_intdigest(bytes(raw[position + 8 : end]))
        raw[position : position + 8] = checksum.to_bytes(8, "little")
        sums += raw[position : position + 8]
        position = end
    covered = bytes(raw[:_CHECKSUM_AT] + raw[_COUNT_AT : _COUNT_AT + 4]) + sums
    raw[_CHECKSUM_AT:_COUNT_AT] = xxhash.xxh3_64_intdigest(covered).to_bytes(8, "little")
