"""The permission tree of a user on the wire (commands 4.2). What it allows: core/permissions.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from shardserver.errors import Code, RejectedError
from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Reader

# Our own bound, far above real trees (a topic is 9 bytes): an entry costs some 20 times its bytes once decoded.
MAX_PERMISSIONS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class GlobalPermissions:
    """Fields in the order of the wire."""

    manage_servers: bool = False
    read_servers: bool = False
    manage_users: bool = False
    read_users: bool = False
    manage_streams: bool = False
    read_streams: bool = False
    manage_topics: bool = False
    read_topics: bool = False
    poll_messages: bool = False
    send_messages: bool = False


@dataclass(frozen=True, slots=True)
class TopicPermissions:
    """Fields in the order of the wire."""

    manage_topic: bool = False
    read_topic: bool = False
    poll_messages: bool = False
    send_messages: bool = False


@dataclass(frozen=True, slots=True)
class StreamPermissions:
    """Flags in the order of the wire; topics by numeric id."""

    manage_stream: bool = False
    read_stream: bool = False
    manage_topics: bool = False
    read_topics: bool = False
    poll_messages: bool = False
    send_messages: bool = False
    topics: dict[int, TopicPermissions] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Permissions:
    """Streams by numeric id: permissions do not follow a rename. An id that comes twice keeps its last entry."""

    server: GlobalPermissions = GlobalPermissions()
    streams: dict[int, StreamPermissions] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: memoryview) -> Self:
        """Raises RejectedError(3)."""
        if len(raw) > MAX_PERMISSIONS_BYTES:
            raise RejectedError(Code.INVALID_COMMAND, f"permissions of {len(raw)} bytes")
        reader = Reader(raw)
        server = GlobalPermissions(*_flags(reader, 10))
        streams: dict[int, StreamPermissions] = {}
        has_next = reader.flag()
        while has_next:
            stream = reader.u32()
            streams[stream] = _read_stream(reader)
            has_next = reader.flag()
        return cls(server, streams)

    def encode(self) -> bytes:
        one = self.server
        servers = (one.manage_servers, one.read_servers, one.manage_users, one.read_users)
        topics = (one.manage_topics, one.read_topics, one.poll_messages, one.send_messages)
        head = bytes((*servers, one.manage_streams, one.read_streams, *topics))
        return head + _chain([wire.u32(id) + _encode_stream(one) for id, one in self.streams.items()])


def _flags(reader: Reader, count: int) -> tuple[bool, ...]:
    return tuple(byte == 1 for byte in reader.take(count))


def _read_stream(reader: Reader) -> StreamPermissions:
    manage, read, manage_topics, read_topics, poll, send = _flags(reader, 6)
    return StreamPermissions(manage, read, manage_topics, read_topics, poll, send, _read_topics(reader))


def _read_topics(reader: Reader) -> dict[int, TopicPermissions]:
    topics: dict[int, TopicPermissions] = {}
    has_next = reader.flag()
    while has_next:
        topic = reader.u32()
        topics[topic] = TopicPermissions(*_flags(reader, 4))
        has_next = reader.flag()
    return topics


def _encode_stream(one: StreamPermissions) -> bytes:
    topics = (one.manage_topics, one.read_topics, one.poll_messages, one.send_messages)
    return bytes((one.manage_stream, one.read_stream, *topics)) + _chain(
        [wire.u32(id) + _encode_topic(topic) for id, topic in one.topics.items()]
    )


def _encode_topic(one: TopicPermissions) -> bytes:
    return bytes((one.manage_topic, one.read_topic, one.poll_messages, one.send_messages))


def _chain(entries: list[bytes]) -> bytes:
    """Each entry behind a 1 that says it is there; a 0 ends the list."""
    return b"".join(b"\x01" + entry for entry in entries) + b"\x00"


def read_optional_permissions(reader: Reader) -> Permissions | None:
    """has_permissions, then length u32 and the tree."""
    return Permissions.decode(reader.sized()) if reader.flag() else None


def encode_optional_permissions(permissions: Permissions | None) -> bytes:
    return b"\x00" if permissions is None else b"\x01" + wire.sized(permissions.encode())
