"""All connections of one shard: the plane that serves them, limits, balance, draining."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Container
from dataclasses import dataclass

from shardserver.core.dispatch import Dispatcher, code_of
from shardserver.core.sessions import Sessions
from shardserver.memory.arena import Arena
from shardserver.memory.board import MAX_SHARDS, Board
from shardserver.net.balance import Balance
from shardserver.net.client import Client
from shardserver.net.handover import Handover, SessionState
from shardserver.net.plane import Plane
from shardserver.net.routes import Routes

log = logging.getLogger(__name__)

DRAIN_LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class NetLimits:
    """Bytes and seconds; see the configuration page for what each costs."""

    max_frame_bytes: int
    in_flight_bytes_per_connection: int
    in_flight_bytes_per_shard: int
    max_connections: int
    first_frame_timeout_s: float
    handover_requests: int = 16


class Listener:
    """inbox: where peers hand connections to. accepting: as Balance takes it. arena: this shard's."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        sessions: Sessions,
        limits: NetLimits,
        number: int,
        board: Board,
        inbox: socket.socket | None,
        accepting: Container[int] = range(MAX_SHARDS),
        *,
        arena: Arena,
    ) -> None:
        self.dispatcher, self.sessions, self.limits = dispatcher, sessions, limits
        self.clients: set[Client] = set()
        self.refused = self.closed_requests = 0
        self.balance = Balance(number, board, accepting)
        self.handover = Handover(self.balance, inbox, self._take)
        self.routes = Routes(dispatcher.context)
        self.plane = Plane(arena, code_of, limits.in_flight_bytes_per_shard)
        loop = asyncio.get_running_loop()
        self.plane.set_schedule(loop.call_soon)
        loop.add_reader(self.plane.fileno(), self.plane.drain)

    @property
    def in_flight_bytes(self) -> int:
        return self.plane.in_flight_bytes

    @property
    def requests(self) -> int:
        """Of all connections so far."""
        return self.closed_requests + sum(client.wire.frames for client in self.clients)

    def attach_peer(self, number: int, board: Board, inbox: socket.socket) -> None:
        self.balance.attach(number, board)
        self.handover.attach(number, inbox)

    def detach_peer(self, number: int) -> None:
        self.balance.detach(number)
        self.handover.detach(number)

    def start_accepting(self, listening: socket.socket | None) -> None:
        if listening is not None:
            self.handover.start_accepting(listening)

    def stop_accepting(self) -> None:
        self.handover.stop_accepting()

    def _take(self, connected: socket.socket, state: SessionState | None) -> None:
        if len(self.clients) >= self.limits.max_connections:
            self.refused += 1
            if self.refused & (self.refused - 1) == 0:  # at 1, 2, 4, 8 …: a bounded rate
                log.warning("connection_refused", extra={"fields": {"limit": self.limits.max_connections}})
            connected.close()
            return
        try:
            connected.setblocking(False)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Client(self, connected, state)
        except OSError:  # it is closed already
            connected.close()

    def count_connections(self) -> None:
        self.balance.own.connections = len(self.clients)

    def has_room(self, shard: int) -> bool:
        """Whether a connection can go on there: the limit is the same for all, and one above it is closed."""
        return shard in self.balance.boards and self.balance.count(shard) < self.limits.max_connections

    async def drain(self, deadline_s: float) -> None:
        """Read no more; wait until what was read has been answered, at most deadline_s."""
        end = asyncio.get_running_loop().time() + deadline_s
        for client in list(self.clients):
            client.stop_reading()
        while any(not one.wire.is_idle for one in self.clients) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(DRAIN_LOOK_S)
        for client in list(self.clients):
            client.end("the server stops")

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.plane.fileno())
        self.plane.close()
