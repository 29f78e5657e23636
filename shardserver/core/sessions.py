"""Who is connected: one record a connection, one session a login."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardserver.core.remote_owner import Unanswered
from shardserver.protocol.clients import NOBODY, TRANSPORT_TCP, ClientInfo

CLIENTS_A_BOOT_BITS = 12


@dataclass(slots=True)
class Connection:
    """session is 0 and user_id NOBODY before login. client: the 16 bytes that the client picked at login.

    routed_to, in_a_row: the shard of the last data requests, and how many of them went there one after another.
    """

    client_id: int
    address: str
    local_host: str = "127.0.0.1"
    session: int = 0
    user_id: int = NOBODY
    client: bytes = b""
    routed_to: int = -1
    in_a_row: int = 0
    unanswered: Unanswered = field(default_factory=list)

    @property
    def is_bound(self) -> bool:
        return self.session != 0

    def note_route(self, shard: int, requests: int = 1) -> None:
        self.in_a_row = self.in_a_row + requests if shard == self.routed_to else requests
        self.routed_to = shard

    def info(self) -> ClientInfo:
        return ClientInfo(self.client_id, self.user_id, TRANSPORT_TCP, self.address)


class Sessions:
    """Connections of this shard. Session numbers are unique over the server's life (boot, counter, shard)."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._boot_number = 0
        self._counter = 0
        self._clients = 0
        self.connections: dict[int, Connection] = {}

    def begin(self, boot_number: int) -> None:
        """boot_number: of this process. Client ids of a former one may live on with other shards: these differ."""
        self._boot_number = boot_number
        self._clients = (boot_number << CLIENTS_A_BOOT_BITS) & 0xFFFFFF

    def connect(self, address: str, local_host: str) -> Connection:
        self._clients += 1
        # Client ids are shown to users only: unique among the connections of all shards of this start.
        client_id = (self._clients << 8 | self._shard) & 0xFFFFFFFF
        made = Connection(client_id, address, local_host)
        self.connections[client_id] = made
        return made

    def adopt(self, connection: Connection) -> None:
        """One that another shard has handed over; its number and session stay what they are."""
        self.connections[connection.client_id] = connection

    def disconnect(self, connection: Connection) -> None:
        self.connections.pop(connection.client_id, None)

    def bind(self, connection: Connection, user_id: int, client: bytes) -> int:
        self._counter += 1
        connection.session = self._boot_number << 40 | self._counter << 8 | self._shard
        connection.user_id, connection.client = user_id, client
        return connection.session

    def unbind(self, connection: Connection) -> None:
        connection.session, connection.user_id = 0, NOBODY
