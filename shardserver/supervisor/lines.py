"""JSON lines on a socket that never blocks: links to the shards, clients of the control socket.

On a Unix socket a line may carry descriptors (SCM_RIGHTS, unix(7)). They leave with the first byte of their line, so
whoever has a whole line has its descriptors too, in order. The line itself has to say how many it takes.
"""

from __future__ import annotations

import array
import errno
import socket
from collections import deque
from collections.abc import Sequence

import msgspec

from shardserver.errors import ProtocolError
from shardserver.supervisor.descriptors import close_all

READ_BYTES = 64 << 10
# All peers of a shard at once take 5 x 63; a bound against one that does not read, not a budget.
MAX_DESCRIPTORS = 1024
# The kernel takes so many in one message (SCM_MAX_FD).
MESSAGE_DESCRIPTORS = 253
# The kernel holds as many descriptors on their way for this user as it may open, or lacks memory: try again later.
HELD_UP = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})


class LineSocket:
    """Owns its socket, and every descriptor from `send` until it has left, or from its arrival until it is taken.

    The owner watches for readable, and for writable while `unsent_bytes` is not 0.
    """

    def __init__(self, connected: socket.socket, max_line_bytes: int, *, takes_descriptors: bool = False) -> None:
        connected.setblocking(False)
        self._socket, self._max_line_bytes = connected, max_line_bytes
        self._takes_descriptors = takes_descriptors
        self._received, self._scanned = bytearray(), 0
        self._received_descriptors: deque[int] = deque()
        self._unsent = bytearray()
        self._sent_bytes = 0  # of all lines so far
        self._unsent_descriptors: deque[tuple[int, tuple[int, ...]]] = deque()  # (where their line begins, they)
        self.is_held_up = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent_bytes(self) -> int:
        return len(self._unsent)

    # Receiving

    def receive(self) -> bool:
        """Take one piece of what is there. False: the peer closed. Raises ProtocolError: descriptors were lost."""
        try:
            data = self._receive_some(min(READ_BYTES, self._max_line_bytes))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += data
        return bool(data)

    def _receive_some(self, limit_bytes: int) -> bytes:
        if not self._takes_descriptors:
            return self._socket.recv(limit_bytes)  # the kernel closes those that nobody asked for
        room = socket.CMSG_SPACE(MESSAGE_DESCRIPTORS * 4)
        data, ancillary, flags, _ = self._socket.recvmsg(limit_bytes, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._received_descriptors.extend(array.array("i", raw[: len(raw) & ~3]))
        if flags & socket.MSG_CTRUNC or len(self._received_descriptors) > MAX_DESCRIPTORS:
            raise ProtocolError("descriptors were lost on their way, or are too many")
        return data

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

    def take_descriptors(self, count: int) -> list[int]:
        """Those of the line just taken; the caller owns them. Raises ProtocolError: fewer have come."""
        if count > len(self._received_descriptors):
            raise ProtocolError(f"{len(self._received_descriptors)} descriptors came for a line that takes {count}")
        return [self._received_descriptors.popleft() for _ in range(count)]

    # Sending

    def send(self, content: object, descriptors: Sequence[int] = ()) -> None:
        """Queue one line and send what the socket takes. The descriptors are ours from now on, also after an error.

        Raises ProtocolError: the peer does not read, and too many descriptors wait for it. Nothing was queued.
        """
        if descriptors:
            waiting = sum(len(some) for _, some in self._unsent_descriptors)
            if waiting + len(descriptors) > MAX_DESCRIPTORS:
                close_all(descriptors)
                raise ProtocolError(f"{waiting} descriptors wait for a peer that does not read")
            self._unsent_descriptors.append((self._sent_bytes + len(self._unsent), tuple(descriptors)))
        self._unsent += msgspec.json.encode(content, enc_hook=str) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send on. A peer that has gone loses the rest; reading tells the owner.

        is_held_up afterwards: the kernel takes no descriptors at the moment, though the socket is writable.
        """
        self.is_held_up = False
        try:
            while self._unsent:
                self._send_piece()
        except BlockingIOError:
            return
        except OSError as error:
            self.is_held_up = error.errno in HELD_UP
            if not self.is_held_up:
                self._drop_unsent()

    def _send_piece(self) -> None:
        """Up to the next line that carries descriptors, or that line: they belong to its first byte."""
        ahead = self._unsent_descriptors[0][0] - self._sent_bytes if self._unsent_descriptors else len(self._unsent)
        descriptors = self._unsent_descriptors[0][1] if ahead == 0 else ()
        end = self._unsent.index(b"\n") + 1 if ahead == 0 else ahead
        with memoryview(self._unsent) as whole, whole[:end] as piece:
            sent = socket.send_fds(self._socket, [piece], descriptors) if descriptors else self._socket.send(piece)
        if descriptors:
            close_all(self._unsent_descriptors.popleft()[1])
        del self._unsent[:sent]
        self._sent_bytes += sent

    def _drop_unsent(self) -> None:
        self._sent_bytes += len(self._unsent)
        self._unsent.clear()
        while self._unsent_descriptors:
            close_all(self._unsent_descriptors.popleft()[1])

    def close(self) -> None:
        self._drop_unsent()
        close_all(self._received_descriptors)
        self._received_descriptors.clear()
        self._socket.close()
