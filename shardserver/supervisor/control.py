"""The control socket: JSON lines from local commands. No client can make the supervisor wait.

Each client has one request in hand: it is read again when its answer has left, so that neither a flood of
requests nor a client that does not read can make memory grow. A deadline ends whoever is slow.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from shardserver.errors import ProtocolError
from shardserver.supervisor.lines import LineSocket
from shardserver.supervisor.messages import MAX_REQUEST_BYTES, Request, answer_deadline_s

MAX_CLIENTS = 32
# From the connection or an answer on, until the next request has come, or the answer has been read.
CLIENT_DEADLINE_S = 10.0
# What a request's own deadline gets on top: its shard answers, or is known to be late, within that deadline.
ANSWER_MARGIN_S = 5.0


class ControlClient:
    """One connection. `reply` may come at any time, also when the client has left."""

    def __init__(self, server: ControlServer, connected: socket.socket) -> None:
        self._server = server
        self.lines = LineSocket(connected, MAX_REQUEST_BYTES)
        self.is_asking = self.is_advancing = self.is_closed = False
        self.deadline = 0.0

    def reply(self, content: dict[str, Any]) -> None:
        if self.is_closed:
            return
        self.is_asking = False
        self._server.restart_deadline(self)
        self.lines.send(content)
        if not self.is_advancing:  # else the loop that asked goes on by itself
            self._server.advance(self)


class ControlServer:
    """Owned by the supervisor's loop. on_request(request, reply) answers each request once, at once or later."""

    def __init__(
        self,
        listening: socket.socket,
        selector: selectors.BaseSelector,
        on_request: Callable[[Request, Callable[[dict[str, Any]], None]], None],
        clock: Callable[[], float],
    ) -> None:
        self._listening, self._selector, self._on_request, self._clock = listening, selector, on_request, clock
        self._clients: dict[ControlClient, int] = {}  # client -> what it is watched for
        selector.register(listening, selectors.EVENT_READ, self._on_connection)

    def next_deadline(self) -> float | None:
        return min((client.deadline for client in self._clients), default=None)

    def end_slow_clients(self) -> None:
        now = self._clock()
        for client in [one for one in self._clients if one.deadline <= now]:
            self._close(client)

    def restart_deadline(self, client: ControlClient) -> None:
        client.deadline = self._clock() + CLIENT_DEADLINE_S

    def close(self) -> None:
        for client in list(self._clients):
            self._close(client)
        self._selector.unregister(self._listening)
        self._listening.close()

    def _on_connection(self) -> None:
        try:
            connected, _ = self._listening.accept()
        except OSError:  # it left before it was taken
            return
        if len(self._clients) >= MAX_CLIENTS or _peer_uid(connected) not in (0, os.geteuid()):
            connected.close()
            return
        client = ControlClient(self, connected)
        self.restart_deadline(client)
        self._clients[client] = 0
        self._watch(client)

    def _on_event(self, client: ControlClient) -> None:
        if client.lines.unsent_bytes:
            client.lines.flush()
        elif not client.lines.receive():
            self._close(client)
            return
        self.advance(client)

    def advance(self, client: ControlClient) -> None:
        """Serve what the client has sent as far as it goes, then watch it for what it lacks."""
        client.is_advancing = True
        try:
            while not client.is_asking and not client.lines.unsent_bytes:
                line = client.lines.take()
                if line is None:
                    break
                self._ask(client, msgspec.json.decode(line, type=Request))
        except (ProtocolError, msgspec.DecodeError, UnicodeDecodeError) as error:
            client.lines.send({"error": str(error)})
            self._close(client)
            return
        client.is_advancing = False
        self._watch(client)

    def _ask(self, client: ControlClient, request: Request) -> None:
        client.is_asking = True
        client.deadline = self._clock() + answer_deadline_s(request.command) + ANSWER_MARGIN_S
        self._on_request(request, client.reply)

    def _watch(self, client: ControlClient) -> None:
        """For nothing while its request is asked: what it sends meanwhile waits in the kernel."""
        wanted = selectors.EVENT_WRITE if client.lines.unsent_bytes else selectors.EVENT_READ
        wanted = 0 if client.is_asking else wanted
        if self._clients[client]:
            self._selector.unregister(client.lines)
        if wanted:
            self._selector.register(client.lines, wanted, lambda: self._on_event(client))
        self._clients[client] = wanted

    def _close(self, client: ControlClient) -> None:
        if self._clients.pop(client):
            self._selector.unregister(client.lines)
        client.is_closed = True
        client.lines.close()


def listen_control(path: str) -> socket.socket:
    """Mode 0600, any length of path: sun_path holds 108 bytes (unix(7)), so the directory is named by a descriptor."""
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o177)
    try:
        listening.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.umask(former)
        os.close(directory)
    listening.listen(MAX_CLIENTS)
    listening.setblocking(False)
    return listening


def _peer_uid(connected: socket.socket) -> int:
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
