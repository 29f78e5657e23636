"""A batch as values, for clients, tools and tests. A server never builds these: it has batch.pyx (messages.md 1, 2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import xxhash

from shardserver.errors import Code, RejectedError
from shardserver.protocol.primitives import Reader
from shardserver.protocol.tlv import UserHeaders, decode_user_headers, encode_user_headers

_HEADER = struct.Struct("<QQQQQ")
_FRAME = struct.Struct("<16sIIIIQ")
_RESERVED_BYTES = 204


@dataclass(frozen=True, slots=True)
class Message:
    """id: u128. The deltas are from the batch's base_offset and origin_timestamp (microseconds)."""

    id: int
    offset_delta: int
    timestamp_delta: int
    payload: bytes
    user_headers: UserHeaders = ()

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Raises RejectedError 3, 4027 for a wrong checksum, and those of user headers."""
        checksum = reader.u64()
        head = reader.take(_FRAME.size)
        id, offset_delta, timestamp_delta, headers_bytes, payload_bytes, reserved = _FRAME.unpack(head)
        payload, headers = reader.take(payload_bytes), reader.take(headers_bytes)
        if reserved:
            raise RejectedError(Code.INVALID_COMMAND, "a reserved field that is not zero")
        if xxhash.xxh3_64_intdigest(b"".join((head, payload, headers))) != checksum:
            raise RejectedError(Code.INVALID_MESSAGE_CHECKSUM, f"message {offset_delta}")
        number = int.from_bytes(id, "little")
        return cls(number, offset_delta, timestamp_delta, bytes(payload), decode_user_headers(headers))

    @property
    def checksum(self) -> int:
        """XXH3-64 of the frame after its first 8 bytes."""
        return xxhash.xxh3_64_intdigest(self._checked_bytes())

    def encode(self) -> bytes:
        checked = self._checked_bytes()
        return xxhash.xxh3_64_intdigest(checked).to_bytes(8, "little") + checked

    def _checked_bytes(self) -> bytes:
        headers, id = encode_user_headers(self.user_headers), self.id.to_bytes(16, "little")
        head = _FRAME.pack(id, self.offset_delta, self.timestamp_delta, len(headers), len(self.payload), 0)
        return head + self.payload + headers


@dataclass(frozen=True, slots=True)
class Batch:
    """partition_id, base_offset and base_timestamp are 0 before the server's stamp. Times are microseconds."""

    origin_timestamp: int
    messages: tuple[Message, ...]
    partition_id: int = 0
    base_offset: int = 0
    base_timestamp: int = 0

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """One batch, both kinds of checksums verified. Raises RejectedError 3, 4027, 4039."""
        head = reader.take(_HEADER.size)
        partition_id, base_offset, base_timestamp, origin_timestamp, length = _HEADER.unpack(head)
        checksum, count = reader.u64(), reader.u32()
        if any(reader.take(_RESERVED_BYTES)) or length < 256:
            raise RejectedError(Code.INVALID_COMMAND, f"a batch of {length} bytes, or a reserved byte not zero")
        frames, messages = Reader(reader.take(length - 256)), list[Message]()
        while frames.left:
            messages.append(Message.read(frames))
        batch = cls(origin_timestamp, tuple(messages), partition_id, base_offset, base_timestamp)
        if len(messages) != count:
            raise RejectedError(Code.INVALID_COMMAND, f"{len(messages)} messages, {count} announced")
        if batch.checksum != checksum:
            raise RejectedError(Code.INVALID_BATCH_CHECKSUM)
        return batch

    @property
    def batch_length(self) -> int:
        return 256 + sum(len(one.encode()) for one in self.messages)

    @property
    def checksum(self) -> int:
        """XXH3-64 of header bytes 0..40 and 48..52 and of each message's checksum."""
        return self._checksum([one.encode() for one in self.messages])

    def _checksum(self, frames: list[bytes]) -> int:
        head = self._head(256 + sum(map(len, frames))) + len(frames).to_bytes(4, "little")
        return xxhash.xxh3_64_intdigest(head + b"".join(frame[:8] for frame in frames))

    def _head(self, length: int) -> bytes:
        stamps = (self.partition_id, self.base_offset, self.base_timestamp)
        return _HEADER.pack(*stamps, self.origin_timestamp, length)

    def encode(self) -> bytes:
        frames = [one.encode() for one in self.messages]
        head = self._head(256 + sum(map(len, frames)))
        checksum, count = self._checksum(frames).to_bytes(8, "little"), len(frames).to_bytes(4, "little")
        return head + checksum + count + bytes(_RESERVED_BYTES) + b"".join(frames)


def decode_batches(raw: memoryview | bytes) -> tuple[Batch, ...]:
    """Batches back to back, as a poll reply holds them."""
    reader, batches = Reader(raw), list[Batch]()
    while reader.left:
        batches.append(Batch.read(reader))
    return tuple(batches)
