"""The server itself (commands 2): cluster, statistics, options, snapshot. Clients: clients.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shardserver.errors import Code, RejectedError
from shardserver.protocol import options as topic_options
from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Reader
from shardserver.protocol.tlv import Typed, encode_typed, read_typed

ROLE_LEADER, STATUS_HEALTHY = 0, 0
SCOPE_TOPIC, SCOPE_STREAM, SCOPE_USER = 1, 2, 3
COMPRESSIONS = range(1, 7)
SNAPSHOT_TYPES = frozenset({1, 2, 3, 4, 5, 6, 100})


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A port of 0 is not offered. role: 0 leader, 1 follower. status: 0 healthy, else commands 2."""

    name: str
    ip: str
    tcp_port: int
    quic_port: int = 0
    http_port: int = 0
    websocket_port: int = 0
    role: int = ROLE_LEADER
    status: int = STATUS_HEALTHY

    @classmethod
    def read(cls, reader: Reader) -> Self:
        name, ip = reader.str32(), reader.str32()
        ports = (reader.u16(), reader.u16(), reader.u16(), reader.u16())
        return cls(name, ip, *ports, reader.u8(), reader.u8())

    def encode(self) -> bytes:
        ports = (self.tcp_port, self.quic_port, self.http_port, self.websocket_port)
        state = wire.u8(self.role) + wire.u8(self.status)
        return wire.str32(self.name) + wire.str32(self.ip) + b"".join(map(wire.u16, ports)) + state


@dataclass(frozen=True, slots=True)
class ClusterMetadata:
    """Reply of get_cluster_metadata. One node: the client stays where it is."""

    name: str
    nodes: tuple[ClusterNode, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        name = reader.str32()
        nodes = tuple(ClusterNode.read(reader) for _ in range(reader.u32()))
        reader.finish()
        return cls(name, nodes)

    def encode(self) -> bytes:
        return wire.str32(self.name) + wire.u32(len(self.nodes)) + b"".join(one.encode() for one in self.nodes)


@dataclass(frozen=True, slots=True)
class DescribeOptionsRequest:
    """scope: 1 topic, 2 stream, 3 user."""

    scope: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        scope = Reader(body).u8()
        if scope not in (SCOPE_TOPIC, SCOPE_STREAM, SCOPE_USER):
            raise RejectedError(Code.INVALID_COMMAND, f"scope {scope}")
        return cls(scope)

    def encode(self) -> bytes:
        return wire.u8(self.scope)


@dataclass(frozen=True, slots=True)
class OptionDescription:
    key: str
    default: Typed
    description: str


@dataclass(frozen=True, slots=True)
class OptionCatalogue:
    """Reply of describe_options."""

    options: tuple[OptionDescription, ...]

    @classmethod
    def of(cls, scope: int, defaults: topic_options.TopicDefaults = topic_options.PLAIN_DEFAULTS) -> Self:
        """What this server knows: options of topics only."""
        known = topic_options.CATALOGUE.values() if scope == SCOPE_TOPIC else ()
        described = [(one, Typed(one.kind, defaults.of(one.key))) for one in known]
        return cls(tuple(OptionDescription(one.key, default, one.description) for one, default in described))

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader, options = Reader(body), list[OptionDescription]()
        for _ in range(reader.u32()):
            key, default = reader.name(), read_typed(reader, Code.INVALID_OPTION_VALUE)
            options.append(OptionDescription(key, default, reader.str32()))
        reader.finish()
        return cls(tuple(options))

    def encode(self) -> bytes:
        parts = [wire.u32(len(self.options))]
        for one in self.options:
            parts += [wire.name(one.key), encode_typed(one.default), wire.str32(one.description)]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """compression: 1 stored, 2 deflated, 3 bzip2, 4 zstd, 5 lzma, 6 xz. types: commands 2, get_snapshot."""

    compression: int
    types: tuple[int, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        compression, types = reader.u8(), tuple(reader.take(reader.u8()))
        if compression not in COMPRESSIONS or not SNAPSHOT_TYPES.issuperset(types):
            raise RejectedError(Code.INVALID_COMMAND, f"snapshot of types {types}, compression {compression}")
        return cls(compression, types)

    def encode(self) -> bytes:
        return wire.u8(self.compression) + wire.u8(len(self.types)) + bytes(self.types)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Reply of get_snapshot: a ZIP archive."""

    archive: bytes

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls(bytes(body))

    def encode(self) -> bytes:
        return self.archive
