"""Routes of sends and polls: from the bytes that name a partition to its log, or of sends to the peer that owns it.

One is found once for a user (a crossing one: for a connection) and revision of the metadata: name, permission and owner
are looked at here, and hold until a change is applied. What is not answered by a route goes the long way, through the
dispatcher.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from shardserver.core.context import ShardContext
from shardserver.core.handlers import choose_fixed_partition, consumer_key, resolve_partition
from shardserver.core.metadata import Partition
from shardserver.core.permissions import check_right
from shardserver.core.sessions import Connection
from shardserver.errors import ShardServerError
from shardserver.net.known_routes import Route
from shardserver.net.poll_route import PollRoute
from shardserver.net.route_table import RouteTable
from shardserver.protocol.addresses import CONSUMER_GROUP
from shardserver.protocol.messages import BY_OFFSET, PollRequest, SendRequest
from shardserver.protocol.primitives import flag, u8, u32, u64
from shardserver.protocol.table import TABLE, Command
from shardserver.storage.partition_log import PartitionLog

Place = tuple[int, int, int]  # ids of stream, topic and partition

SEND_ROW, POLL_ROW = TABLE[Command.SEND_MESSAGES], TABLE[Command.POLL_MESSAGES]
SHARED_KEYS = 16 * 1024  # of one user's routes, which are found anew when there are more
ANY_POLL = u8(BY_OFFSET) + u64(0) + u32(1) + flag(False)


Found = TypeVar("Found", Route, PollRoute)


def share(shared: dict[int, RouteTable[Found]], connection: Connection, key: bytes, route: Found) -> Found:
    """Others of the connection's user need not look for it."""
    known = shared.setdefault(connection.user_id, RouteTable())
    if len(known) >= SHARED_KEYS:
        known.clear()
    known[key] = route
    return route


class Routes:
    """Of one shard; connections share them."""

    def __init__(self, context: ShardContext) -> None:
        self._context = context
        self._revision = -1
        self._routes: dict[int, Route] = {}
        self._polls: dict[bytes, PollRoute] = {}
        self._shared_routes: dict[int, RouteTable[Route]] = {}
        self._shared_polls: dict[int, RouteTable[PollRoute]] = {}
        self._taken: list[tuple[int, int, int]] = []  # by routes of former revisions

    def find(self, connection: Connection, key: bytes) -> Route | None:
        """key: identifiers and partitioning of a send. None: not bound, refused, or placed anew by each."""
        if not connection.is_bound:
            return None
        metadata = self._context.metadata
        try:
            request = SendRequest.decode(memoryview(u32(len(key) + 4) + key + bytes(4)))
            if request.encode()[4:-4] != key:  # with bytes that mean nothing: the count does not stand where it should
                return None
            check_right(metadata, connection.user_id, SEND_ROW, request)
            stream, topic = metadata.find_topic(request.stream, request.topic)
            partition = choose_fixed_partition(topic, request)
            if partition is None:
                return None
            place = (stream.id, topic.id, partition.id)
            if partition.shard != self._context.shards.number:
                return self._crossing_route(connection, partition, place)
            log = self._context.shards.local.log_of(partition.uid)
        except ShardServerError:  # the long way says why
            return None
        self._begin_revision(metadata.revision)
        if partition.uid not in self._routes:
            self._routes[partition.uid] = Route(log, partition.uid, *place)
        return share(self._shared_routes, connection, key, self._routes[partition.uid])

    def _crossing_route(self, connection: Connection, partition: Partition, place: Place) -> Route | None:
        """Of one connection: what it sends again after a 57 is compared with what was late. The owner counts its load.

        None: there is no such shard.
        """
        owner = self._context.shards.remote.get(partition.shard)
        if owner is None:
            return None
        target = owner.target(partition.uid, connection.unanswered)
        return Route(target, partition.uid, *place, crosses_to=partition.shard)

    def find_poll(self, connection: Connection, key: bytes) -> PollRoute | None:
        """key: consumer, topic and partition of a poll. None: not bound, refused, or elsewhere."""
        if not connection.is_bound:
            return None
        metadata, local = self._context.metadata, self._context.shards.local
        try:
            request = PollRequest.decode(memoryview(key + ANY_POLL))
            if request.address.encode() != key:  # bytes that mean nothing
                return None
            check_right(metadata, connection.user_id, POLL_ROW, request)
            partition = resolve_partition(metadata, request.address)
            if partition.shard != self._context.shards.number:
                return None
            log, kind = local.log_of(partition.uid), request.address.kind
            consumer = consumer_key(metadata, request.address)
        except ShardServerError:  # the long way says why
            return None
        self._begin_revision(metadata.revision)
        member = connection.session if kind == CONSUMER_GROUP else 0
        name = key + u64(member)
        if name not in self._polls:
            self._polls[name] = self._make_poll_route(log, kind, consumer, member)
        found = self._polls[name]
        return found if member else share(self._shared_polls, connection, key, found)

    def _make_poll_route(self, log: PartitionLog, kind: int, consumer: int, member: int) -> PollRoute:
        """member: the session of a group's member, which its fence is asked for each time; 0: of none."""
        if len(self._polls) >= SHARED_KEYS:
            self._taken, self._polls = self.take_loads(), {}
        local = self._context.shards.local
        committed = partial(local.committed, log.uid, kind, consumer)
        commit = partial(local.auto_commit, log, kind, consumer)
        route = partial(PollRoute, log, committed, commit, self._context.max_reply_bytes)
        if not member:
            return route()
        fence = (log.uid, consumer, member)
        return route(partial(local.fences.may_poll, *fence), partial(local.fences.note_delivered, *fence))

    def shared(self, connection: Connection) -> tuple[RouteTable[Route], RouteTable[PollRoute]]:
        """What was found for sends and polls of this connection's user, by key. To be read only."""
        if not connection.is_bound or self._revision != self._context.metadata.revision:
            return RouteTable(), RouteTable()
        user_id = connection.user_id
        routes = self._shared_routes.setdefault(user_id, RouteTable())
        return routes, self._shared_polls.setdefault(user_id, RouteTable())

    def _begin_revision(self, revision: int) -> None:
        if revision != self._revision:
            self._taken = self.take_loads()
            self._revision, self._routes, self._polls = revision, {}, {}
            self._shared_routes, self._shared_polls = {}, {}

    def take_loads(self) -> list[tuple[int, int, int]]:
        """[(uid, requests, bytes)] taken by routes of this shard's partitions since the last call."""
        taken, self._taken = self._taken, []
        routes: list[Route | PollRoute] = [*self._routes.values(), *self._polls.values()]
        loads = [(route.uid, *route.take_load()) for route in routes]
        return taken + [load for load in loads if load[1]]
