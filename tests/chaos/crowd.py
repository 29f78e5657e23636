"""Connections that do nothing, or the wrong thing slowly: silent ones, halves of frames, readers that do not read."""

from __future__ import annotations

import errno
import random
import socket
from collections import Counter
from contextlib import suppress

from shardserver.client.connection import Connection
from shardserver.errors import ShardServerError
from tests.crash.load import PARTITIONS, STREAM, TOPIC
from tests.server_process import PASSWORD

SLOW_READERS, HALF_OPEN = 3, 10
POLLS_UNREAD, POLL_MESSAGES = 50, 200


class Crowd:
    """Opened at once, held, closed at once."""

    def __init__(self, counts: Counter[str], silent: int) -> None:
        self._counts, self._silent = counts, silent
        self._sockets: list[socket.socket] = []

    def open(self, address: str) -> None:
        """As many as the server takes: beyond its limit it closes them."""
        host, _, port = address.rpartition(":")
        place = (host, int(port))
        for number in range(self._silent + HALF_OPEN):
            try:
                one = socket.create_connection(place, 2.0)
            except OSError as error:
                self._counts[f"refused connections ({errno.errorcode.get(error.errno or 0, 'timeout')})"] += 1
                if number > self._silent // 2:
                    break
                continue
            self._sockets.append(one)
            if number >= self._silent:
                with suppress(OSError):
                    one.sendall(bytes(48) + b"\xff\x01" + bytes(random.randrange(180)))
                self._counts["half-open connections"] += 1
            else:
                self._counts["silent connections"] += 1
        for _ in range(SLOW_READERS):
            self._open_slow_reader(place)

    def _open_slow_reader(self, place: tuple[str, int]) -> None:
        with suppress(OSError, ShardServerError):
            client = Connection(*place, timeout_s=5.0)
            self._sockets.append(client.detach_socket())
            client.login("iggy", PASSWORD)
            one = client.detach_socket()
            one.setblocking(False)
            with suppress(BlockingIOError):
                for number in range(POLLS_UNREAD):
                    one.sendall(client.poll_frame(STREAM, TOPIC, number % PARTITIONS, 0, POLL_MESSAGES))
            self._counts["slow readers"] += 1

    def close(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets.clear()
