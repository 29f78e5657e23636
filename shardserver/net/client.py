"""The life of one client's socket: time to the first frame, closing with a reason, moving to another shard."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from shardserver.core.dispatch import Reply
from shardserver.core.sessions import Connection
from shardserver.net.handover import MAX_UNREAD_BYTES, SessionState
from shardserver.net.known_routes import Route
from shardserver.net.plane import PlaneConnection
from shardserver.net.poll_route import PollRoute
from shardserver.net.routes import Found
from shardserver.protocol.frame import Frame
from shardserver.protocol.table import OP_LOGOUT, OP_REGISTER

if TYPE_CHECKING:
    from shardserver.net.listener import Listener

log = logging.getLogger(__name__)


class Client:
    """Owns its socket. Replies are addressed to `wire`, so a late one never reaches another connection."""

    def __init__(self, listener: Listener, connected: socket.socket, state: SessionState | None) -> None:
        self._listener, self._socket = listener, connected
        limits = listener.limits
        self.wire = PlaneConnection(listener.plane, self, limits.max_frame_bytes, limits.in_flight_bytes_per_connection)
        if limits.handover_requests:
            self.wire.crossings_told = limits.handover_requests
        self._handing_over = False
        self._frames_before, self._activity = 0, 0.0
        self._first_frame: asyncio.TimerHandle | None = None
        if state is None:
            self.connection = self._meet()
            loop = asyncio.get_running_loop()
            self._first_frame = loop.call_later(limits.first_frame_timeout_s, self._no_first_frame)
        else:
            self.connection = self._go_on(state)
        listener.clients.add(self)
        listener.count_connections()
        listener.plane.add(self.wire, connected.fileno())
        if state is not None and state.unread:
            self.wire.feed(state.unread)

    def _meet(self) -> Connection:
        host, port = self._socket.getpeername()[:2]
        return self._listener.sessions.connect(f"{host}:{port}", self._socket.getsockname()[0])

    def _go_on(self, state: SessionState) -> Connection:
        """A connection that another shard has handed over."""
        connection = Connection(
            state.client_id,
            state.address,
            state.local_host,
            state.session,
            state.user_id,
            state.client,
            state.user_epoch,
            last_leave=state.last_leave,
        )
        self._listener.sessions.adopt(connection, self._listener.dispatcher.context.metadata)
        return connection

    def _no_first_frame(self) -> None:
        self._first_frame = None
        if self.wire.frames == 0:
            self.end("no frame in time")

    # What the plane asks

    def start(self, frame: Frame, reply: Reply) -> None:
        operation = frame.header.operation
        if operation in (OP_REGISTER, OP_LOGOUT):
            self._listener.dispatcher.start(self.connection, frame, self._rebinding(reply))
            return
        self._listener.dispatcher.start(self.connection, frame, reply)
        self._watch_for_handover()

    def _watch_for_handover(self) -> None:
        if not self.wire.wants_owner and self._wants_handover():
            self.wire.wants_owner = True

    def _rebinding(self, reply: Reply) -> Reply:
        """Whoever is bound now, the routes were another one's."""

        def answer(buffers: list[bytes | bytearray | memoryview], closes: bool) -> None:
            self.wire.forget_routes()
            reply(buffers, closes)

        return answer

    def find_route(self, key: bytes) -> Route | None:
        return self._with_shared(self._listener.routes.find(self.connection, key))

    def find_poll_route(self, key: bytes) -> PollRoute | None:
        return self._with_shared(self._listener.routes.find_poll(self.connection, key))

    def _with_shared(self, found: Found | None) -> Found | None:
        known = self.wire.routes
        known.shared_sends, known.shared_polls = self._listener.routes.shared(self.connection)
        return found

    def note_local(self) -> None:
        self.connection.note_route(self._listener.balance.number)

    def note_crossings(self, shard: int, count: int) -> None:
        self.connection.note_route(shard, count)
        self._watch_for_handover()

    def on_change(self) -> None:
        wire = self.wire
        if wire.is_broken or (wire.close_reason and wire.is_idle):
            self.end(wire.close_reason)
        elif self._handing_over or self._wants_handover():
            self._try_hand_over()
        else:
            wire.wants_owner = False

    def look_at_activity(self) -> float:
        """Requests since the last look, and half of what that one gave."""
        self._activity = self._activity / 2 + self.wire.frames - self._frames_before
        self._frames_before = self.wire.frames
        return self._activity

    # To another shard

    def _wants_handover(self) -> bool:
        connection, listener = self.connection, self._listener
        limit = listener.limits.handover_requests
        return (
            0 < limit <= connection.in_a_row
            and connection.routed_to != listener.balance.number
            and not connection.unanswered
            and not connection.groups  # a member reads partitions of many shards
            and not self.wire.stopped
            and not self.wire.close_reason
            and self.wire.unread_bytes <= MAX_UNREAD_BYTES
            and listener.has_room(connection.routed_to)
        )

    def _try_hand_over(self) -> None:
        """Read no more, answer what was read; then the connection goes on where its partition is."""
        self._handing_over = self.wire.stopped = True
        if not self.wire.is_idle:
            return
        one, unread = self.connection, self.wire.take_unread()
        bound = (one.session, one.user_id, one.client, one.user_epoch)
        state = SessionState(one.client_id, one.address, one.local_host, *bound, unread, one.last_leave)
        self._handing_over = self.wire.wants_owner = False
        if self._listener.handover.try_hand(one.routed_to, self._socket.fileno(), state):
            self._close("handed over")
            return
        one.in_a_row = 0
        self.wire.stopped = False
        self.wire.feed(unread)
        self.wire.update()

    # The end

    def stop_reading(self) -> None:
        self.wire.stopped = True
        self.wire.update()

    def end(self, reason: str) -> None:
        """Close the connection; the reason is logged once."""
        if self.wire.fd >= 0:
            log.info("connection_closed", extra={"fields": {"peer": self.connection.address, "reason": reason}})
            self._close(reason)

    def _close(self, reason: str) -> None:
        self._listener.plane.remove(self.wire)
        self._listener.closed_requests += self.wire.frames
        self.wire.close(reason)
        self._socket.close()
        if self._first_frame is not None:
            self._first_frame.cancel()
        self._listener.sessions.disconnect(self.connection)
        self._listener.clients.discard(self)
        self._listener.count_connections()
