"""Committed offsets of consumers (messages.md 5). Body of get_consumer_offset: addresses.PartitionAddress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shardserver.protocol import primitives as wire
from shardserver.protocol.addresses import PartitionAddress
from shardserver.protocol.primitives import Reader

ACK_NONE, ACK_COMMITTED = 0, 1


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a consumer in a partition: offsets of the last message committed and of the newest one; None: there is none.

    lag: messages behind the committed one that are kept, or all that are kept.
    """

    committed: int | None
    end: int | None
    lag: int

    @classmethod
    def of(cls, committed: int | None, current_offset: int, messages_count: int) -> Self:
        """current_offset, messages_count: of the partition, as get_topic tells them."""
        behind = messages_count if committed is None else min(messages_count, current_offset - committed)
        return cls(committed, current_offset if messages_count else None, max(0, behind))


@dataclass(frozen=True, slots=True)
class StoreOffsetRequest:
    """ack: 0 answer once applied in memory, 1 once committed."""

    address: PartitionAddress
    offset: int
    ack: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(PartitionAddress.read(reader), reader.u64(), reader.u8())

    def encode(self) -> bytes:
        return self.address.encode() + wire.u64(self.offset) + wire.u8(self.ack)


@dataclass(frozen=True, slots=True)
class DeleteOffsetRequest:
    """ack as in StoreOffsetRequest."""

    address: PartitionAddress
    ack: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(PartitionAddress.read(reader), reader.u8())

    def encode(self) -> bytes:
        return self.address.encode() + wire.u8(self.ack)


@dataclass(frozen=True, slots=True)
class OffsetReply:
    """Reply of get_consumer_offset; an empty body when nothing is stored."""

    partition: int
    current_offset: int
    stored_offset: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        reply = cls(reader.u32(), reader.u64(), reader.u64())
        reader.finish()
        return reply

    def encode(self) -> bytes:
        return wire.u32(self.partition) + wire.u64(self.current_offset) + wire.u64(self.stored_offset)
