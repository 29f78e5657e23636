"""Connected clients (commands 2): get_me, get_client, get_clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Reader

NOBODY = 0xFFFFFFFF
TRANSPORT_TCP, TRANSPORT_QUIC, TRANSPORT_HTTP, TRANSPORT_WEBSOCKET = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class GetClientRequest:
    """client_id: the number that the server gave the connection, not the u128 of the header."""

    client_id: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls(Reader(body).u32())

    def encode(self) -> bytes:
        return wire.u32(self.client_id)


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """user_id: 2^32-1 before login. transport: 1 TCP, 2 QUIC, 3 HTTP, 4 WebSocket. address: `ip:port`."""

    client_id: int
    user_id: int
    transport: int
    address: str
    groups_count: int = 0

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.u32(), reader.u32(), reader.u8(), reader.str32(), reader.u32())

    def encode(self) -> bytes:
        head = wire.u32(self.client_id) + wire.u32(self.user_id) + wire.u8(self.transport)
        return head + wire.str32(self.address) + wire.u32(self.groups_count)


@dataclass(frozen=True, slots=True)
class Membership:
    """A consumer group that a client is in."""

    stream_id: int
    topic_id: int
    group_id: int


@dataclass(frozen=True, slots=True)
class ClientDetails:
    """Reply of get_me and get_client. There are info.groups_count memberships."""

    info: ClientInfo
    memberships: tuple[Membership, ...] = ()

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        info = ClientInfo.read(reader)
        groups = tuple(Membership(*reader.u32s(3)) for _ in range(info.groups_count))
        reader.finish()
        return cls(info, groups)

    def encode(self) -> bytes:
        groups = [wire.u32s((one.stream_id, one.topic_id, one.group_id)) for one in self.memberships]
        return self.info.encode() + b"".join(groups)


@dataclass(frozen=True, slots=True)
class ClientList:
    """Reply of get_clients. No memberships follow, although groups_count may be above 0."""

    clients: tuple[ClientInfo, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader, clients = Reader(body), list[ClientInfo]()
        while reader.left:
            clients.append(ClientInfo.read(reader))
        return cls(tuple(clients))

    def encode(self) -> bytes:
        return b"".join(one.encode() for one in self.clients)
