"""Builders of batches in wire layout, written from the format and not by the server's own code."""

import struct

import xxhash


def make_frame(index: int, payload: bytes, message_id: int = 1) -> bytes:
    body = struct.pack("<16sIIIIQ", message_id.to_bytes(16, "little"), index, 0, 0, len(payload), 0) + payload
    return xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") + body


def make_batch(payloads: list[bytes]) -> bytearray:
    """As a producer sends it."""
    frames = [make_frame(index, payload) for index, payload in enumerate(payloads)]
    length = 256 + sum(map(len, frames))
    head = struct.pack("<QQQQQ", 0, 0, 0, 1_700_000_000_000_000, length)
    count = struct.pack("<I", len(frames))
    checksum = xxhash.xxh3_64_intdigest(head + count + b"".join(frame[:8] for frame in frames))
    return bytearray(head + checksum.to_bytes(8, "little") + count + bytes(204) + b"".join(frames))


def payloads_of(data: bytes) -> list[bytes]:
    """Payloads of stored batches back to back."""
    return [payload for _, payload in messages_of(data)]


def messages_of(data: bytes) -> list[tuple[int, bytes]]:
    """Offset and payload of each message of stored batches back to back. One that was cut keeps its base offset."""
    found, position = [], 0
    while position < len(data):
        base = struct.unpack_from("<Q", data, position + 8)[0]
        end = position + struct.unpack_from("<Q", data, position + 32)[0]
        place = position + 256
        while place < end:
            index, headers, length = struct.unpack_from("<I4xII", data, place + 24)
            found.append((base + index, bytes(data[place + 48 : place + 48 + length])))
            place += 48 + length + headers
        position = end
    return found
