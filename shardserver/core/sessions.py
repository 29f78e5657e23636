"""Who is connected: one record a connection, one session a login."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from shardserver.core.groups.coordinator import GroupKey
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_events import AccessEnded, UserCreated, UserDeleted
from shardserver.core.remote_owner import Unanswered
from shardserver.errors import Code, RejectedError
from shardserver.protocol.clients import NOBODY, TRANSPORT_TCP, ClientDetails, ClientInfo, Membership

CLIENTS_A_BOOT_BITS = 12
EVICT_NO_SESSION, EVICT_STALE = 1, 13
# What a sync last told a member: generation, and the partitions that it may poll.
Told = tuple[int, list[int]]
NOTHING_TOLD: Told = (0, [])
# After these somebody's session may be over (a user may be created under the id of one that is gone).
ENDS_SESSIONS = (AccessEnded, UserCreated, UserDeleted)


class LastLeave(msgspec.Struct, frozen=True):
    """The last leave of a group that was carried out. is_done False: it was answered 57, and may be done or not."""

    client: bytes
    request: int
    checksum: bytes
    is_done: bool = True

    def repeats(self, other: LastLeave) -> bool:
        """Raises RejectedError(4): the number has another body (protocol README 6.2)."""
        if not self.request or (self.client, self.request) != (other.client, other.request):
            return False
        if self.checksum != other.checksum:
            raise RejectedError(Code.INVALID_FORMAT, f"request {self.request} with another body")
        return True


@dataclass(slots=True)
class Connection:
    """session is 0 and user_id NOBODY before login. client: the 16 bytes that the client picked at login.

    user_epoch: the user's at login. ended_by: the eviction that took the session; 0: none. routed_to, in_a_row: the
    shard of the last data requests, and how many of them went there one after another.
    """

    client_id: int
    address: str
    local_host: str = "127.0.0.1"
    session: int = 0
    user_id: int = NOBODY
    client: bytes = b""
    user_epoch: int = 0
    ended_by: int = 0
    routed_to: int = -1
    in_a_row: int = 0
    unanswered: Unanswered = field(default_factory=list)
    groups: dict[GroupKey, Told] = field(default_factory=dict)
    last_leave: LastLeave | None = None

    @property
    def is_bound(self) -> bool:
        return self.session != 0

    def note_route(self, shard: int, requests: int = 1) -> None:
        self.in_a_row = self.in_a_row + requests if shard == self.routed_to else requests
        self.routed_to = shard

    def details(self) -> ClientDetails:
        info = ClientInfo(self.client_id, self.user_id, TRANSPORT_TCP, self.address, len(self.groups))
        groups = sorted(self.groups, key=lambda key: (key.stream_id, key.topic_id, key.group_id))
        return ClientDetails(info, tuple(Membership(key.stream_id, key.topic_id, key.group_id) for key in groups))


class Sessions:
    """Connections of this shard. Session numbers are unique over the server's life (boot, counter, shard)."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._boot_number = 0
        self._counter = 0
        self._clients = 0
        self.connections: dict[int, Connection] = {}
        # Told which groups a session was in when it has ended, or its connection.
        self.on_left: Callable[[int, Iterable[GroupKey]], None] = lambda session, groups: None

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

    def adopt(self, connection: Connection, metadata: Metadata) -> None:
        """One that another shard has handed over; its number and session stay what they are.

        Its user may have changed while it was on its way.
        """
        self.connections[connection.client_id] = connection
        self.end_if_stale(connection, metadata)

    def disconnect(self, connection: Connection) -> None:
        self.connections.pop(connection.client_id, None)
        self._leave_groups(connection)

    def bind(self, connection: Connection, user_id: int, client: bytes, user_epoch: int = 0) -> int:
        self._counter += 1
        connection.user_epoch, connection.ended_by = user_epoch, 0
        connection.session = self._boot_number << 40 | self._counter << 8 | self._shard
        connection.user_id, connection.client = user_id, client
        return connection.session

    def unbind(self, connection: Connection) -> None:
        self._leave_groups(connection)
        connection.session, connection.user_id, connection.ended_by = 0, NOBODY, 0

    def end_stale(self, metadata: Metadata) -> None:
        """Take the sessions of users that are gone, or whose sessions a change has ended."""
        for connection in self.connections.values():
            self.end_if_stale(connection, metadata)

    def end_if_stale(self, connection: Connection, metadata: Metadata) -> None:
        if not connection.is_bound:
            return
        user = metadata.users.get(connection.user_id)
        if user is not None and user.epoch != connection.user_epoch and user.spared == connection.client:
            connection.user_epoch = user.epoch
        if user is None or user.epoch != connection.user_epoch:
            self.end(connection, EVICT_NO_SESSION)

    def end(self, connection: Connection, reason: int) -> None:
        """Its next request is answered with this eviction."""
        self.unbind(connection)
        connection.ended_by = reason

    def _leave_groups(self, connection: Connection) -> None:
        groups, connection.groups = connection.groups, {}
        if groups:
            self.on_left(connection.session, groups)
