"""A server for the load alone: answers sends by the protocol, when the test lets it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

from shardserver.bench.load import LoadConnection
from shardserver.client.connection import Connection

REPLY = 8


def request_of(frame: bytes) -> int:
    return int(struct.unpack_from("<Q", frame, 168)[0])


def send_reply(frame: bytes, base_offset: int, status: int = 0) -> bytes:
    """To a send (framing.md 3, messages.md 3.3)."""
    body = struct.pack("<IIIIQ", 1, 0, 0, 0, base_offset) if not status else b""
    head = bytearray(256)
    struct.pack_into("<I", head, 48, 256 + len(body))
    head[60] = REPLY
    struct.pack_into("<QB", head, 200, request_of(frame), 160)
    struct.pack_into("<I", head, 216, status)
    return bytes(head) + body


class FakeServer:
    """Takes one connection's frames into `frames`; `answer(number, frame)` gives the reply to each, when it returns.

    released_ns: when the answer of each was given.
    """

    def __init__(self, answer: Callable[[int, bytes], bytes]) -> None:
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.frames: list[bytes] = []
        self.released_ns: list[int] = []

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._listening.close()

    def connect(self) -> Connection:
        return Connection(*self._listening.getsockname()[:2])

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection, connection.makefile("rb") as stream:
            while head := stream.read(256):
                frame = head + stream.read(struct.unpack_from("<I", head, 48)[0] - 256)
                self.frames.append(frame)
                reply = self._answer(len(self.frames) - 1, frame)
                self.released_ns.append(time.monotonic_ns())
                connection.sendall(reply)


def load_connection(
    client: Connection, *, messages: int, depth: int, requests: int, partitions: int = 1
) -> LoadConnection:
    """Sends, numbered 1, on the socket of a client that must stay open."""
    frame = client.send_frame("stream", "topic", 0, b"", messages)
    sock = client.detach_socket()
    sock.setblocking(False)
    return LoadConnection(sock.fileno(), True, 1, frame, depth, len(frame) - 8, 0, 0, partitions, 0, requests)


def batch_of(frame: bytes) -> bytes:
    """The batch in a send's frame."""
    return frame[256 + 4 + struct.unpack_from("<I", frame, 256)[0] :]
