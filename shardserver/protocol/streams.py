"""Streams (commands 5): requests, and how they are told in replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from shardserver.protocol import options as topic_options
from shardserver.protocol import primitives as wire
from shardserver.protocol.options import Options
from shardserver.protocol.primitives import Identifier, Reader
from shardserver.protocol.topics import TopicHeader


@dataclass(frozen=True, slots=True)
class CreateStreamRequest:
    """No option key is known for streams; they are carried so that a server can refuse them by code."""

    name: str
    options: Options

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.name(), topic_options.decode_options(reader.rest()))

    def encode(self) -> bytes:
        return wire.name(self.name) + topic_options.encode_options(self.options)


@dataclass(frozen=True, slots=True)
class UpdateStreamRequest:
    stream: Identifier
    name: str
    options: Options

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), reader.name(), topic_options.decode_options(reader.rest()))

    def encode(self) -> bytes:
        head = wire.identifier(self.stream) + wire.name(self.name)
        return head + topic_options.encode_options(self.options)


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """A stream without its topics. created_at: microseconds since the epoch."""

    id: int
    created_at: int
    topics_count: int
    size_bytes: int
    messages_count: int
    name: str
    options: Options

    @classmethod
    def read(cls, reader: Reader) -> Self:
        numbers = (reader.u32(), reader.u64(), reader.u32(), reader.u64(), reader.u64())
        return cls(*numbers, reader.name(), topic_options.decode_options(reader.sized()))

    def encode(self) -> bytes:
        head = wire.u32(self.id) + wire.u64(self.created_at) + wire.u32(self.topics_count)
        sizes = wire.u64(self.size_bytes) + wire.u64(self.messages_count)
        return head + sizes + wire.name(self.name) + wire.sized(topic_options.encode_options(self.options))


@dataclass(frozen=True, slots=True)
class StreamDetails:
    """Reply of get_stream and create_stream. There are header.topics_count topics."""

    header: StreamHeader
    topics: tuple[TopicHeader, ...]

    @classmethod
    def of(cls, id: int, created_at: int, name: str, topics: Sequence[TopicHeader]) -> Self:
        """The sizes and counts of the header follow from the topics."""
        sizes, messages = sum(one.size_bytes for one in topics), sum(one.messages_count for one in topics)
        return cls(StreamHeader(id, created_at, len(topics), sizes, messages, name, {}), tuple(topics))

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        header = StreamHeader.read(reader)
        topics = tuple(TopicHeader.read(reader) for _ in range(header.topics_count))
        reader.finish()
        return cls(header, topics)

    def encode(self) -> bytes:
        return self.header.encode() + b"".join(one.encode() for one in self.topics)


@dataclass(frozen=True, slots=True)
class StreamList:
    """Reply of get_streams."""

    streams: tuple[StreamHeader, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader, streams = Reader(body), list[StreamHeader]()
        while reader.left:
            streams.append(StreamHeader.read(reader))
        return cls(tuple(streams))

    def encode(self) -> bytes:
        return b"".join(one.encode() for one in self.streams)
