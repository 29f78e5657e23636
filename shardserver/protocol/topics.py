"""Topics and partitions (commands 6): requests, and how they are told in replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from shardserver.protocol import options as topic_options
from shardserver.protocol import primitives as wire
from shardserver.protocol.options import Options, OptionValue, TopicDefaults
from shardserver.protocol.primitives import Identifier, Reader

COMPRESSION_NONE, COMPRESSION_GZIP = 1, 2


@dataclass(frozen=True, slots=True)
class CreateTopicRequest:
    """Options are as sent, keys not yet checked."""

    stream: Identifier
    partitions_count: int
    name: str
    options: Options

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        stream, count, name = reader.identifier(), reader.u32(), reader.name()
        return cls(stream, count, name, topic_options.decode_options(reader.rest()))

    def encode(self) -> bytes:
        head = wire.identifier(self.stream) + wire.u32(self.partitions_count) + wire.name(self.name)
        return head + topic_options.encode_options(self.options)


@dataclass(frozen=True, slots=True)
class UpdateTopicRequest:
    """Options are a patch: a key that is absent stays as it is."""

    stream: Identifier
    topic: Identifier
    name: str
    options: Options

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        stream, topic, name = reader.identifier(), reader.identifier(), reader.name()
        return cls(stream, topic, name, topic_options.decode_options(reader.rest()))

    def encode(self) -> bytes:
        head = wire.identifier(self.stream) + wire.identifier(self.topic) + wire.name(self.name)
        return head + topic_options.encode_options(self.options)


@dataclass(frozen=True, slots=True)
class PartitionsRequest:
    """Body of create_partitions and delete_partitions: how many to add, or to take from the highest ids."""

    stream: Identifier
    topic: Identifier
    count: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), reader.identifier(), reader.u32())

    def encode(self) -> bytes:
        return wire.identifier(self.stream) + wire.identifier(self.topic) + wire.u32(self.count)


@dataclass(frozen=True, slots=True)
class DeleteSegmentsRequest:
    """count: of the oldest sealed segments of one partition."""

    stream: Identifier
    topic: Identifier
    partition: int
    count: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), reader.identifier(), reader.u32(), reader.u32())

    def encode(self) -> bytes:
        topic = wire.identifier(self.stream) + wire.identifier(self.topic)
        return topic + wire.u32(self.partition) + wire.u32(self.count)


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """created_at: microseconds since the epoch. current_offset: the newest offset, 0 when there is none."""

    id: int
    created_at: int
    segments_count: int
    current_offset: int
    size_bytes: int
    messages_count: int

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.u32(), reader.u64(), reader.u32(), reader.u64(), reader.u64(), reader.u64())

    def encode(self) -> bytes:
        counts = wire.u64(self.current_offset) + wire.u64(self.size_bytes) + wire.u64(self.messages_count)
        return wire.u32(self.id) + wire.u64(self.created_at) + wire.u32(self.segments_count) + counts


@dataclass(frozen=True, slots=True)
class TopicHeader:
    """A topic without its partitions. explicit: options that someone set; derived: all others, as in force."""

    id: int
    created_at: int
    partitions_count: int
    message_expiry: int
    compression_algorithm: int
    max_topic_size: int
    size_bytes: int
    messages_count: int
    name: str
    explicit: Options
    derived: Options

    @classmethod
    def read(cls, reader: Reader) -> Self:
        numbers = (reader.u32(), reader.u64(), reader.u32(), reader.u64(), reader.u8())
        sizes = (reader.u64(), reader.u64(), reader.u64())
        name = reader.name()
        explicit = topic_options.decode_options(reader.sized())
        return cls(*numbers, *sizes, name, explicit, topic_options.decode_options(reader.sized()))

    def encode(self) -> bytes:
        parts = (
            wire.u32(self.id),
            wire.u64(self.created_at),
            wire.u32(self.partitions_count),
            wire.u64(self.message_expiry),
            wire.u8(self.compression_algorithm),
            wire.u64(self.max_topic_size),
            wire.u64(self.size_bytes),
            wire.u64(self.messages_count),
            wire.name(self.name),
            wire.sized(topic_options.encode_options(self.explicit)),
            wire.sized(topic_options.encode_options(self.derived)),
        )
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class TopicDetails:
    """Reply of get_topic and create_topic. There are header.partitions_count partitions."""

    header: TopicHeader
    partitions: tuple[PartitionInfo, ...]

    @classmethod
    def of(
        cls,
        id: int,
        created_at: int,
        name: str,
        options: dict[str, OptionValue],
        partitions: Sequence[PartitionInfo],
        defaults: TopicDefaults = topic_options.PLAIN_DEFAULTS,
    ) -> Self:
        """From the explicit options and the partitions of a topic; the rest of the header follows from them."""
        gzip = topic_options.effective(options, "compression_algorithm") == "gzip"
        header = TopicHeader(
            id=id,
            created_at=created_at,
            partitions_count=len(partitions),
            message_expiry=int(topic_options.effective(options, "message_expiry", defaults)),
            compression_algorithm=COMPRESSION_GZIP if gzip else COMPRESSION_NONE,
            max_topic_size=int(topic_options.effective(options, "max_topic_size", defaults)),
            size_bytes=sum(one.size_bytes for one in partitions),
            messages_count=sum(one.messages_count for one in partitions),
            name=name,
            explicit=topic_options.typed_options(options),
            derived=topic_options.typed_options(topic_options.derived(options, defaults)),
        )
        return cls(header, tuple(partitions))

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        header = TopicHeader.read(reader)
        partitions = tuple(PartitionInfo.read(reader) for _ in range(header.partitions_count))
        reader.finish()
        return cls(header, partitions)

    def encode(self) -> bytes:
        return self.header.encode() + b"".join(one.encode() for one in self.partitions)


@dataclass(frozen=True, slots=True)
class TopicList:
    """Reply of get_topics."""

    topics: tuple[TopicHeader, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        topics = tuple(TopicHeader.read(reader) for _ in range(reader.u32()))
        reader.finish()
        return cls(topics)

    def encode(self) -> bytes:
        return wire.u32(len(self.topics)) + b"".join(one.encode() for one in self.topics)
