"""TCP around the connection machine: backpressure, time to the first frame, limits, draining, hand-over."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Container
from dataclasses import dataclass
from typing import cast

from shardserver.core.dispatch import Dispatcher
from shardserver.core.sessions import Connection, Sessions
from shardserver.memory.board import MAX_SHARDS, Board
from shardserver.net.balance import Balance
from shardserver.net.handover import MAX_UNREAD_BYTES, Handover, SessionState
from shardserver.net.machine import Buffers, ConnectionMachine, Reply
from shardserver.protocol.frame import Frame

log = logging.getLogger(__name__)

WRITE_HIGH_BYTES = 1 << 20
JOIN_BYTES = 64 * 1024


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
    """All connections of one shard. inbox: where peers hand connections to. accepting: as Balance takes it."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        sessions: Sessions,
        limits: NetLimits,
        number: int,
        board: Board,
        inbox: socket.socket | None,
        accepting: Container[int] = range(MAX_SHARDS),
    ) -> None:
        self.dispatcher, self.sessions, self.limits = dispatcher, sessions, limits
        self.protocols: set[ClientProtocol] = set()
        self.refused = 0
        self.in_flight_bytes = 0
        self._arriving = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.balance = Balance(number, board, accepting)
        self.handover = Handover(self.balance, inbox, self._take)

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
        self._arriving += 1
        self.count_connections()
        task = asyncio.get_running_loop().create_task(self._serve(connected, state))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connected: socket.socket, state: SessionState | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: ClientProtocol(self, state), connected)
        except OSError:  # it is closed already
            connected.close()
        finally:
            self._arriving -= 1
            self.count_connections()

    def count_connections(self) -> None:
        self.balance.own.connections = len(self.protocols) + self._arriving

    def has_room(self, shard: int) -> bool:
        """Whether a connection can go on there: the limit is the same for all, and one above it is closed."""
        return shard in self.balance.boards and self.balance.count(shard) < self.limits.max_connections

    async def drain(self, deadline_s: float) -> None:
        """Read no more; wait until what was read has been answered, at most deadline_s."""
        end = asyncio.get_running_loop().time() + deadline_s
        for protocol in list(self.protocols):
            protocol.stop_reading()
        while any(not one.is_drained for one in self.protocols) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.005)
        for protocol in list(self.protocols):
            protocol.end("the server stops")


class ClientProtocol(asyncio.Protocol):
    """One socket. Replies are addressed to the machine, so a late one never reaches another connection."""

    def __init__(self, listener: Listener, state: SessionState | None = None) -> None:
        self._listener, self._state = listener, state
        self._handing_over = False
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._reading, self._stopped, self._writable, self._flush_due = True, False, True, False
        self._first_frame: asyncio.TimerHandle | None = None
        self._counted_bytes = 0
        limits = listener.limits
        self.machine = ConnectionMachine(
            self._start_request, limits.max_frame_bytes, limits.in_flight_bytes_per_connection
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's class does not derive from it
        limits, listener = self._listener.limits, self._listener
        if len(listener.protocols) >= limits.max_connections:
            listener.refused += 1
            if listener.refused & (listener.refused - 1) == 0:  # at 1, 2, 4, 8 …: a bounded rate
                log.warning("connection_refused", extra={"fields": {"limit": limits.max_connections}})
            transport.abort()
            return
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.protocols.add(self)
        if self._state is not None:
            self._go_on(self._state)
            return
        host, port = transport.get_extra_info("peername")[:2]
        self._connection = listener.sessions.connect(f"{host}:{port}", transport.get_extra_info("sockname")[0])
        loop = asyncio.get_running_loop()
        self._first_frame = loop.call_later(limits.first_frame_timeout_s, self._no_first_frame)

    def _go_on(self, state: SessionState) -> None:
        """A connection that another shard has handed over."""
        self._connection = Connection(
            state.client_id, state.address, state.local_host, state.session, state.user_id, state.client
        )
        self._listener.sessions.adopt(self._connection)
        if state.unread:
            self.machine.feed(state.unread)

    def _no_first_frame(self) -> None:
        if self.machine.frames == 0:
            self.end("no frame in time")

    def data_received(self, data: bytes) -> None:
        if self._connection is None:
            return
        self.machine.feed(data)
        if self.machine.frames and self._first_frame is not None:
            self._first_frame.cancel()
            self._first_frame = None
        self._flush()
        self.update_reading()

    def _start_request(self, frame: Frame, reply: Reply) -> None:
        assert self._connection is not None

        def complete(buffers: Buffers, closes: bool) -> None:
            reply(buffers, closes)
            self._schedule_flush()

        self._listener.dispatcher.start(self._connection, frame, complete)

    def _schedule_flush(self) -> None:
        """One write for all replies that become due in this turn of the loop."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        output, transport = self.machine.take_output(), self._transport
        if transport is None:
            return
        self._count_in_flight()
        if output:
            if sum(map(len, output)) <= JOIN_BYTES:
                transport.write(b"".join(output))
            else:
                transport.writelines(output)
        if self.machine.close_reason and (self.machine.is_idle or self.machine.is_closed):
            self.end(self.machine.close_reason)
        elif self._handing_over or self._wants_handover():
            self._try_hand_over()
        elif not self._reading:
            self.update_reading()

    # To another shard

    def _wants_handover(self) -> bool:
        connection, listener = self._connection, self._listener
        limit = listener.limits.handover_requests
        return (
            connection is not None
            and 0 < limit <= connection.in_a_row
            and connection.routed_to != listener.balance.number
            and not connection.unanswered
            and not self._stopped
            and self.machine.unread_bytes <= MAX_UNREAD_BYTES
            and listener.has_room(connection.routed_to)
        )

    def _try_hand_over(self) -> None:
        """Read no more, answer what was read; then the connection goes on where its partition is."""
        assert self._transport is not None and self._connection is not None
        if not self._handing_over:
            self._handing_over = True
            self._transport.set_write_buffer_limits(high=0)  # so that an empty buffer is told
        if not self.is_drained:
            self.update_reading()
            return
        self._handing_over = False
        one = self._connection
        state = SessionState(
            one.client_id, one.address, one.local_host, one.session, one.user_id, one.client, self.machine.take_unread()
        )
        # A copy: the transport closes its own descriptor, which ends the connection only if it is the last.
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        self._transport.pause_reading()
        if self._listener.handover.try_hand(one.routed_to, descriptor, state):
            self.machine.close("handed over")
            self._transport.abort()
        else:
            one.in_a_row = 0
            self._transport.resume_reading()
            self._reading = True
            self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
            self.machine.feed(state.unread)
            self.update_reading()
        os.close(descriptor)

    def _count_in_flight(self) -> None:
        now = self.machine.in_flight_bytes
        self._listener.in_flight_bytes += now - self._counted_bytes
        self._counted_bytes = now

    def update_reading(self) -> None:
        """Backpressure: read only while this connection, this shard and the socket's own buffer have room."""
        self._count_in_flight()
        if self._transport is None or self._transport.is_closing():
            return
        shard_has_room = self._listener.in_flight_bytes < self._listener.limits.in_flight_bytes_per_shard
        wanted = self.machine.wants_more and self._writable and not self._stopped and not self._handing_over
        wanted = wanted and (shard_has_room or self.machine.in_flight_bytes == 0)
        if wanted and not self._reading:
            self._reading = True
            self._transport.resume_reading()
        elif not wanted and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._writable = False
        self.update_reading()

    def resume_writing(self) -> None:
        self._writable = True
        if self._handing_over:
            self._try_hand_over()
        else:
            self.update_reading()

    def stop_reading(self) -> None:
        self._stopped = True
        self.update_reading()

    @property
    def is_drained(self) -> bool:
        written = self._transport is None or self._transport.get_write_buffer_size() == 0
        return self.machine.is_idle and written

    def end(self, reason: str) -> None:
        """Close the connection; the reason is logged once."""
        self.machine.close(reason)
        if self._transport is not None and not self._transport.is_closing():
            peer = self._connection.address if self._connection else ""
            log.info("connection_closed", extra={"fields": {"peer": peer, "reason": reason}})
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.machine.close("the peer closed")
        self._listener.in_flight_bytes -= self._counted_bytes
        self._counted_bytes = self.machine.in_flight_bytes
        if self._first_frame is not None:
            self._first_frame.cancel()
        self._transport = None
        self.machine.take_output()  # may be lent by another shard
        self.machine.start_request = _start_nothing  # no cycle may keep what we hold
        if self._connection is not None:
            self._listener.sessions.disconnect(self._connection)
            self._listener.protocols.discard(self)
            self._listener.count_connections()


def _start_nothing(frame: Frame, reply: Reply) -> None:
    """Of a connection that has ended."""
