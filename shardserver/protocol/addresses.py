"""Which stream, topic, group, user or partition a request is about (framing 9). Each is a request body by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shardserver.errors import Code, RejectedError
from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Identifier, Reader

CONSUMER_SINGLE, CONSUMER_GROUP = 1, 2


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """Body of get_stream, delete_stream, purge_stream, get_topics."""

    stream: Identifier

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls(Reader(body).identifier())

    def encode(self) -> bytes:
        return wire.identifier(self.stream)


@dataclass(frozen=True, slots=True)
class TopicAddress:
    """Body of get_topic, delete_topic, purge_topic, get_consumer_groups."""

    stream: Identifier
    topic: Identifier

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), reader.identifier())

    def encode(self) -> bytes:
        return wire.identifier(self.stream) + wire.identifier(self.topic)


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """Body of get, delete, join, leave and sync of a consumer group."""

    stream: Identifier
    topic: Identifier
    group: Identifier

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), reader.identifier(), reader.identifier())

    def encode(self) -> bytes:
        return wire.identifier(self.stream) + wire.identifier(self.topic) + wire.identifier(self.group)


@dataclass(frozen=True, slots=True)
class UserAddress:
    """Body of get_user and delete_user."""

    user: Identifier

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls(Reader(body).identifier())

    def encode(self) -> bytes:
        return wire.identifier(self.user)


@dataclass(frozen=True, slots=True)
class PartitionAddress:
    """Who reads what, the head of polls and offset requests, and the body of get_consumer_offset.

    kind: 1 single consumer, 2 consumer group. partition: None when it is not named.
    """

    kind: int
    consumer: Identifier
    stream: Identifier
    topic: Identifier
    partition: int | None

    @classmethod
    def read(cls, reader: Reader) -> Self:
        kind = reader.u8()
        if kind not in (CONSUMER_SINGLE, CONSUMER_GROUP):
            raise RejectedError(Code.INVALID_COMMAND, f"consumer kind {kind}")
        return cls(kind, reader.identifier(), reader.identifier(), reader.identifier(), reader.optional_partition())

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls.read(Reader(body))

    def encode(self) -> bytes:
        consumer = wire.u8(self.kind) + wire.identifier(self.consumer)
        topic = wire.identifier(self.stream) + wire.identifier(self.topic)
        return consumer + topic + wire.optional_partition(self.partition)
