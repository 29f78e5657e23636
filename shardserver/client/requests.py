"""Bodies of the requests that the client makes, and what it reads from replies (commands.md, messages.md)."""

from __future__ import annotations

from dataclasses import dataclass

from shardserver.protocol import primitives as wire
from shardserver.protocol.login import PROTOCOL_VERSION
from shardserver.protocol.options import OptionValue, encode_options, typed_options
from shardserver.protocol.primitives import Identifier, Reader

SDK_NAME, SDK_VERSION = "shardserver", "0.1.0"
PARTITION_ID = b"\x02\x04"  # partitioning: kind 2, 4 bytes (messages.md 3.2)
SINGLE_CONSUMER = b"\x01"
BY_OFFSET = 1
# Bytes of a poll's body behind the place of its offset: the offset itself, count u32, auto-commit u8.
POLL_OFFSET_FROM_END = 13


@dataclass(frozen=True, slots=True)
class PollReply:
    """batches: whole stored batches back to back, a view of the reply's bytes. current_offset is 0 when empty."""

    partition: int
    current_offset: int
    count: int
    batches: memoryview

    @classmethod
    def decode(cls, body: memoryview) -> PollReply:
        reader = Reader(body)
        return cls(reader.u32(), reader.u64(), reader.u32(), reader.rest())


def encode_login(username: str, password: str) -> bytes:
    secret = wire.name(username) + wire.name(password)
    return wire.u32(PROTOCOL_VERSION) + wire.name(SDK_NAME) + wire.name(SDK_VERSION) + secret + wire.u32(0)


def encode_create_topic(stream: Identifier, name: str, partitions: int, options: dict[str, OptionValue]) -> bytes:
    return wire.identifier(stream) + wire.u32(partitions) + wire.name(name) + encode_options(typed_options(options))


def encode_send(stream: Identifier, topic: Identifier, partition: int, batch: bytes, count: int) -> bytes:
    """count: messages of the batch."""
    place = wire.identifier(stream) + wire.identifier(topic) + PARTITION_ID + wire.u32(partition)
    return wire.u32(len(place) + 4) + place + wire.u32(count) + batch


def encode_poll(stream: Identifier, topic: Identifier, partition: int, offset: int, count: int) -> bytes:
    """By offset, single consumer 1, no auto-commit."""
    place = wire.identifier(1) + wire.identifier(stream) + wire.identifier(topic) + wire.optional_partition(partition)
    return SINGLE_CONSUMER + place + wire.u8(BY_OFFSET) + wire.u64(offset) + wire.u32(count) + bytes(1)


def decode_base_offset(body: memoryview) -> int:
    """Of the one confirmation in a send's reply (messages.md 3.3)."""
    reader = Reader(body)
    reader.take(16)
    return reader.u64()


def decode_message_count(body: memoryview) -> int:
    """messages_count in topic details (commands.md 6.1)."""
    reader = Reader(body)
    reader.take(4 + 8 + 4 + 8 + 1 + 8 + 8)
    return reader.u64()
