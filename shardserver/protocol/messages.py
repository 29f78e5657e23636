"""Send, poll, flush (messages.md 3, 4, 6). Batches stay bytes here; their values: batch_values.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shardserver.errors import Code, RejectedError
from shardserver.protocol import primitives as wire
from shardserver.protocol.addresses import PartitionAddress
from shardserver.protocol.primitives import Identifier, Reader

KIND_BALANCED, KIND_PARTITION, KIND_KEY = 1, 2, 3
BY_OFFSET, BY_TIMESTAMP, FIRST, LAST, NEXT = 1, 2, 3, 4, 5
# Told in a poll reply to a member of a group who does not own the partition (messages 4.3).
NOT_OWNED = 0xFFFFFFFF


def _check_partitioning(kind: int, size: int) -> None:
    """Raises RejectedError 3 or 4028."""
    if kind == KIND_KEY and size == 0:
        raise RejectedError(Code.INVALID_KEY_LENGTH, "an empty key")
    if kind != KIND_KEY and (kind, size) not in ((KIND_BALANCED, 0), (KIND_PARTITION, 4)):
        raise RejectedError(Code.INVALID_COMMAND, f"partitioning of kind {kind}, length {size}")


@dataclass(frozen=True, slots=True)
class SendRequest:
    """kind and value: partitioning, 1 balanced, 2 partition id, 3 key. batch: one in wire layout, not yet verified.

    batch is a view of the decoded body.
    """

    stream: Identifier
    topic: Identifier
    kind: int
    value: bytes
    count: int
    batch: memoryview | bytes

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises RejectedError 3, 6 or 4028."""
        reader = Reader(body)
        metadata = Reader(reader.sized())
        stream, topic = metadata.identifier(), metadata.identifier()
        kind, size = metadata.u8(), metadata.u8()
        value = bytes(metadata.take(size))
        _check_partitioning(kind, size)
        return cls(stream, topic, kind, value, metadata.u32(), reader.rest())

    def encode(self) -> bytes:
        partitioning = wire.u8(self.kind) + wire.u8(len(self.value)) + self.value
        metadata = wire.identifier(self.stream) + wire.identifier(self.topic) + partitioning + wire.u32(self.count)
        return wire.sized(metadata) + self.batch


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Where a batch went."""

    stream_id: int
    topic_id: int
    partition_id: int
    base_offset: int

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.u32(), reader.u32(), reader.u32(), reader.u64())

    def encode(self) -> bytes:
        place = wire.u32(self.stream_id) + wire.u32(self.topic_id) + wire.u32(self.partition_id)
        return place + wire.u64(self.base_offset)


@dataclass(frozen=True, slots=True)
class SendReply:
    """One confirmation a request. None (also an empty body) is legal for most clients."""

    confirmations: tuple[Confirmation, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises RejectedError(3) unless the body is 4 + 20 * count bytes, or empty."""
        if len(body) == 0:
            return cls(())
        reader = Reader(body)
        confirmations = tuple(Confirmation.read(reader) for _ in range(reader.u32()))
        reader.finish()
        return cls(confirmations)

    def encode(self) -> bytes:
        return wire.u32(len(self.confirmations)) + b"".join(one.encode() for one in self.confirmations)


@dataclass(frozen=True, slots=True)
class PollRequest:
    """strategy: 1 offset, 2 timestamp, 3 first, 4 last, 5 next. value: an offset or microseconds, else 0."""

    address: PartitionAddress
    strategy: int
    value: int
    count: int
    auto_commit: bool

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        address = PartitionAddress.read(reader)
        strategy, value, count = reader.u8(), reader.u64(), reader.u32()
        if not BY_OFFSET <= strategy <= NEXT:
            raise RejectedError(Code.INVALID_COMMAND, f"polling strategy {strategy}")
        return cls(address, strategy, value, count, reader.flag())

    def encode(self) -> bytes:
        strategy = wire.u8(self.strategy) + wire.u64(self.value)
        return self.address.encode() + strategy + wire.u32(self.count) + wire.flag(self.auto_commit)


def encode_poll_head(partition: int, current_offset: int, count: int) -> bytes:
    """The 16 bytes before the batches, which a server sends as they are stored."""
    return wire.u32(partition) + wire.u64(current_offset) + wire.u32(count)


@dataclass(frozen=True, slots=True)
class PollReply:
    """current_offset: the newest readable one. batches: back to back; a view of the decoded body."""

    partition: int
    current_offset: int
    count: int
    batches: memoryview | bytes

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.u32(), reader.u64(), reader.u32(), reader.rest())

    def encode(self) -> bytes:
        return encode_poll_head(self.partition, self.current_offset, self.count) + self.batches


@dataclass(frozen=True, slots=True)
class FlushRequest:
    """sync: also make the bytes durable."""

    stream: Identifier
    topic: Identifier
    partition: int
    sync: bool

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), reader.identifier(), reader.u32(), reader.flag())

    def encode(self) -> bytes:
        topic = wire.identifier(self.stream) + wire.identifier(self.topic)
        return topic + wire.u32(self.partition) + wire.flag(self.sync)
