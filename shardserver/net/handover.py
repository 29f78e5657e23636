"""Connections on their way from one shard's process to another: a message with the descriptor and its state.

A new connection is handed over at accept, to the shard with the fewest. One in use is handed over at a request
boundary: nothing of it is in hand, and bytes that were read and are no whole frame yet travel along.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from shardserver.core.sessions import LastLeave
from shardserver.net.balance import Balance

log = logging.getLogger(__name__)

# A datagram of that size fits into any send buffer (the default of net.core.wmem_default is 208 KiB).
MAX_UNREAD_BYTES = 64 << 10
MAX_DATAGRAM_BYTES = MAX_UNREAD_BYTES + 4096
# A new connection is passed on so often at most: counts change while it is on its way.
MAX_HOPS = 4
ACCEPTS_A_TURN = 64
PAUSE_S = 0.1


class SessionState(msgspec.Struct, frozen=True):
    """What a connection in use takes along. unread: the beginning of a frame."""

    client_id: int
    address: str
    local_host: str
    session: int
    user_id: int
    client: bytes
    user_epoch: int
    unread: bytes
    last_leave: LastLeave | None = None


class Handed(msgspec.Struct, frozen=True):
    """state: None for a connection that has just been accepted."""

    from_shard: int
    hops: int = 0
    state: SessionState | None = None


@dataclass(slots=True)
class HandoverStatistics:
    accepted: int = 0
    handed_at_accept: int = 0
    handed_in_use: int = 0
    received: int = 0


Take = Callable[[socket.socket, SessionState | None], None]


class Handover:
    """Owned by one shard's loop. take: a connection that stays here. inbox: None on a server with one shard."""

    def __init__(self, balance: Balance, inbox: socket.socket | None, take: Take) -> None:
        self._balance, self._inbox, self._take = balance, inbox, take
        self._peers: dict[int, socket.socket] = {}
        self._listening: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self.statistics = HandoverStatistics()
        if inbox is not None:
            inbox.setblocking(False)
            self._loop.add_reader(inbox.fileno(), self._receive)

    # Peers

    def attach(self, number: int, inbox: socket.socket) -> None:
        inbox.setblocking(False)
        self._peers[number] = inbox

    def detach(self, number: int) -> None:
        gone = self._peers.pop(number, None)
        if gone is not None:
            gone.close()

    # Accepting

    def start_accepting(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._loop.add_reader(listening.fileno(), self._accept)

    def stop_accepting(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
        if self._inbox is not None and self._inbox.fileno() >= 0:
            self._loop.remove_reader(self._inbox.fileno())

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._listening is None:
                return
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._meet_accept_error(error)
                return
            self.statistics.accepted += 1
            self._place(connected, hops=0)

    def _meet_accept_error(self, error: OSError) -> None:
        """The client left before it was taken, or descriptors have run out: who waits keeps the socket readable."""
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
            return
        log.warning("accept_failed", extra={"fields": {"error": str(error)}})
        assert self._listening is not None
        self._loop.remove_reader(self._listening.fileno())
        self._loop.call_later(PAUSE_S, self._go_on_accepting)

    def _go_on_accepting(self) -> None:
        if self._listening is not None:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def _place(self, connected: socket.socket, *, hops: int) -> None:
        best = self._balance.best()
        if best == self._balance.number or hops >= MAX_HOPS or not self._hand(best, connected.fileno(), hops, None):
            self._take(connected, None)
            return
        self.statistics.handed_at_accept += 1
        connected.close()

    # Handing over

    def try_hand(self, shard: int, descriptor: int, state: SessionState) -> bool:
        """Hand over a connection in use. The caller closes its descriptor, which does not end the connection."""
        handed = self._hand(shard, descriptor, 0, state)
        self.statistics.handed_in_use += handed
        return handed

    def _hand(self, shard: int, descriptor: int, hops: int, state: SessionState | None) -> bool:
        peer = self._peers.get(shard)
        if peer is None:
            return False
        raw = msgspec.msgpack.encode(Handed(self._balance.number, hops, state))
        self._balance.note_handed(shard)
        try:
            socket.send_fds(peer, [raw], [descriptor])
        except OSError:  # full, or its process has just ended: the connection stays where it is
            self._balance.own.handed[shard] -= 1
            return False
        return True

    def _receive(self) -> None:
        assert self._inbox is not None
        for _ in range(ACCEPTS_A_TURN):
            try:
                raw, descriptors, _, _ = socket.recv_fds(self._inbox, MAX_DATAGRAM_BYTES, 1)
            except OSError:  # nothing more, or no descriptor left for it
                return
            if not raw:
                return
            self._take_handed(msgspec.msgpack.decode(raw, type=Handed), descriptors)

    def _take_handed(self, handed: Handed, descriptors: list[int]) -> None:
        self._balance.note_received(handed.from_shard)
        if not descriptors:  # the limit of descriptors: the kernel has closed it
            log.warning("connection_lost_in_handover", extra={"fields": {"from_shard": handed.from_shard}})
            return
        connected = socket.socket(fileno=descriptors[0])
        connected.set_inheritable(False)  # recv_fds takes flags, and does not pass them on (Python 3.11)
        connected.setblocking(False)
        self.statistics.received += 1
        if handed.state is not None:
            self._take(connected, handed.state)
        else:
            self._place(connected, hops=handed.hops + 1)

    def close(self) -> None:
        self.stop_accepting()
        for peer in self._peers.values():
            peer.close()
        with contextlib.suppress(OSError):
            if self._inbox is not None:
                self._inbox.close()
