"""JSON lines on a socket that never blocks: links to the shards, clients of the control socket."""

from __future__ import annotations

import socket

import msgspec

from shardserver.errors import ProtocolError

READ_BYTES = 64 << 10


class LineSocket:
    """Owns its socket. The owner watches for readable, and for writable while `unsent_bytes` is not 0."""

    def __init__(self, connected: socket.socket, max_line_bytes: int) -> None:
        connected.setblocking(False)
        self._socket, self._max_line_bytes = connected, max_line_bytes
        self._received, self._scanned = bytearray(), 0
        self._unsent = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent_bytes(self) -> int:
        return len(self._unsent)

    def receive(self) -> bool:
        """Take one piece of what is there. False: the peer closed."""
        try:
            data = self._socket.recv(min(READ_BYTES, self._max_line_bytes))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += data
        return bool(data)

    def take(self) -> bytes | None:
        """The next whole line; None until more arrives. Raises ProtocolError when a line grows past its limit."""
        end = self._received.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._received)
            if self._scanned > self._max_line_bytes:
                raise ProtocolError(f"a line of more than {self._max_line_bytes} bytes")
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._scanned = 0
        return line

    def send(self, content: object) -> None:
        """Queue one line and send what the socket takes."""
        self._unsent += msgspec.json.encode(content, enc_hook=str) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send on. A peer that has gone loses the rest; reading tells the owner."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()

    def close(self) -> None:
        self._socket.close()
