"""Bodies of the commands that this release serves: requests in, replies out (commands 2-6, messages 3-5)."""

from __future__ import annotations

from dataclasses import dataclass

from shardserver.errors import Code, RejectedError
from shardserver.protocol import options as topic_options
from shardserver.protocol import primitives as wire
from shardserver.protocol.options import OptionValue
from shardserver.protocol.primitives import Identifier, Reader

PROTOCOL_VERSION = 11 << 10
EMPTY_POLL_BYTES = 16


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """username is None for the token form; then password holds the token."""

    protocol_version: int
    sdk_name: str
    sdk_version: str
    username: str | None
    password: str

    @classmethod
    def decode(cls, body: memoryview) -> LoginRequest:
        """The password form if it ends exactly at the end of the body, else the token form. Raises RejectedError."""
        for has_name in (True, False):
            reader = Reader(body)
            version, sdk_name, sdk_version = reader.u32(), reader.name(), reader.name()
            try:
                username = reader.name() if has_name else None
                password = reader.name()
                reader.take(reader.u32())
            except RejectedError:
                continue
            if reader.left == 0:
                return cls(version, sdk_name, sdk_version, username, password)
        raise RejectedError(Code.INVALID_FORMAT, "neither form of a login")


def encode_login_reply(user_id: int, session: int, server_version: str) -> bytes:
    return wire.u32(user_id) + wire.u64(session) + wire.u32(PROTOCOL_VERSION) + wire.name(server_version)


def encode_cluster_metadata(host: str, tcp_port: int) -> bytes:
    """One healthy leader: the client stays."""
    node = wire.str32("iggy-node") + wire.str32(host) + tcp_port.to_bytes(2, "little") + bytes(6) + bytes(2)
    return wire.str32("single-node") + wire.u32(1) + node


@dataclass(frozen=True, slots=True)
class ClientInfo:
    client_id: int
    user_id: int
    transport: int
    address: str

    def encode(self) -> bytes:
        head = wire.u32(self.client_id) + wire.u32(self.user_id) + wire.u8(self.transport)
        return head + wire.str32(self.address) + wire.u32(0)


def encode_option_catalogue(scope: int) -> bytes:
    """Scopes: 1 topic, 2 stream, 3 user."""
    if scope not in (1, 2, 3):
        raise RejectedError(Code.INVALID_COMMAND, f"scope {scope}")
    catalogue = topic_options.CATALOGUE if scope == 1 else {}
    parts = [wire.u32(len(catalogue))]
    for option in catalogue.values():
        raw = topic_options.encode_value(option, option.default)
        parts += [wire.name(option.key), wire.u8(option.kind), wire.u32(len(raw)), raw, wire.str32(option.description)]
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    id: int
    created_at: int
    segments_count: int
    current_offset: int
    size_bytes: int
    messages_count: int

    def encode(self) -> bytes:
        counts = wire.u64(self.current_offset) + wire.u64(self.size_bytes) + wire.u64(self.messages_count)
        return wire.u32(self.id) + wire.u64(self.created_at) + wire.u32(self.segments_count) + counts


@dataclass(frozen=True, slots=True)
class TopicInfo:
    id: int
    created_at: int
    name: str
    options: dict[str, OptionValue]
    partitions: tuple[PartitionInfo, ...]

    def encode_header(self) -> bytes:
        explicit = topic_options.encode_entries(self.options)
        derived = topic_options.encode_entries(topic_options.derived(self.options))
        compression = 2 if topic_options.effective(self.options, "compression_algorithm") == "gzip" else 1
        return b"".join(
            (
                wire.u32(self.id),
                wire.u64(self.created_at),
                wire.u32(len(self.partitions)),
                wire.u64(int(topic_options.effective(self.options, "message_expiry"))),
                wire.u8(compression),
                wire.u64(int(topic_options.effective(self.options, "max_topic_size"))),
                wire.u64(sum(one.size_bytes for one in self.partitions)),
                wire.u64(sum(one.messages_count for one in self.partitions)),
                wire.name(self.name),
                wire.u32(len(explicit)),
                explicit,
                wire.u32(len(derived)),
                derived,
            )
        )

    def encode(self) -> bytes:
        return self.encode_header() + b"".join(one.encode() for one in self.partitions)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    id: int
    created_at: int
    name: str
    topics: tuple[TopicInfo, ...]

    def encode_header(self) -> bytes:
        partitions = [one for topic in self.topics for one in topic.partitions]
        sizes = wire.u64(sum(one.size_bytes for one in partitions))
        counts = wire.u64(sum(one.messages_count for one in partitions))
        head = wire.u32(self.id) + wire.u64(self.created_at) + wire.u32(len(self.topics))
        return head + sizes + counts + wire.name(self.name) + wire.u32(0)

    def encode(self) -> bytes:
        return self.encode_header() + b"".join(topic.encode_header() for topic in self.topics)


@dataclass(frozen=True, slots=True)
class SendRequest:
    """partitioning: kind 1 balanced, 2 partition id, 3 key. batch: one batch in wire layout, not yet verified."""

    stream: Identifier
    topic: Identifier
    kind: int
    value: bytes
    count: int
    batch: memoryview

    @classmethod
    def decode(cls, body: memoryview) -> SendRequest:
        reader = Reader(body)
        length = reader.u32()
        metadata = Reader(reader.take(length))
        stream, topic = metadata.identifier(), metadata.identifier()
        kind, size = metadata.u8(), metadata.u8()
        value = bytes(metadata.take(size))
        if (kind, size) != (1, 0) and (kind, size) != (2, 4) and not (kind == 3 and size):
            code = Code.INVALID_KEY_LENGTH if kind == 3 else Code.INVALID_COMMAND
            raise RejectedError(code, f"partitioning of kind {kind}, length {size}")
        return cls(stream, topic, kind, value, metadata.u32(), reader.rest())


def encode_send_reply(stream: int, topic: int, partition: int, base_offset: int) -> bytes:
    return wire.u32(1) + wire.u32(stream) + wire.u32(topic) + wire.u32(partition) + wire.u64(base_offset)


@dataclass(frozen=True, slots=True)
class PartitionAddress:
    """Who reads what: consumer kind 1 single, 2 group; partition None: not named."""

    kind: int
    consumer: Identifier
    stream: Identifier
    topic: Identifier
    partition: int | None

    @classmethod
    def read(cls, reader: Reader) -> PartitionAddress:
        kind = reader.u8()
        if kind not in (1, 2):
            raise RejectedError(Code.INVALID_COMMAND, f"consumer kind {kind}")
        return cls(kind, reader.identifier(), reader.identifier(), reader.identifier(), reader.optional_partition())


@dataclass(frozen=True, slots=True)
class PollRequest:
    address: PartitionAddress
    strategy: int
    value: int
    count: int
    auto_commit: bool

    @classmethod
    def decode(cls, body: memoryview) -> PollRequest:
        reader = Reader(body)
        address = PartitionAddress.read(reader)
        strategy, value, count = reader.u8(), reader.u64(), reader.u32()
        if not 1 <= strategy <= 5:
            raise RejectedError(Code.INVALID_COMMAND, f"polling strategy {strategy}")
        return cls(address, strategy, value, count, reader.flag())


def encode_poll_head(partition: int, current_offset: int, count: int) -> bytes:
    return wire.u32(partition) + wire.u64(current_offset) + wire.u32(count)


def encode_offset_reply(partition: int, current_offset: int, stored_offset: int) -> bytes:
    return wire.u32(partition) + wire.u64(current_offset) + wire.u64(stored_offset)
