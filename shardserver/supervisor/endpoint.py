"""What the supervisor makes for one process of a shard, and keeps of it for the peers: arena, doorbell, inbox."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from shardserver.memory.board import Board
from shardserver.memory.shared import make_memory, map_memory, map_read_only, read_only_descriptor
from shardserver.router.ring_python import make_ring, ring_bytes
from shardserver.supervisor.descriptors import OwnDescriptors

PAGE_BYTES = 4096


class Endpoint:
    """The peers' side of one process. Each process has a new one: what a dead one still held cannot reach the next."""

    def __init__(self, arena: int, doorbell: int, inbox: int, board: Board, held: ExitStack) -> None:
        self._arena, self._doorbell, self._inbox, self.board = arena, doorbell, inbox, board
        self._held = held

    @property
    def shared(self) -> tuple[int, int, int]:
        """Arena (read-only), doorbell and inbox (write end); they stay ours, a peer gets copies."""
        return self._arena, self._doorbell, self._inbox

    def close(self) -> None:
        self._held.close()


def make_endpoint(shard: int, arena_bytes: int) -> tuple[Endpoint, OwnDescriptors]:
    """Both sides; the process's own descriptors are the caller's. Raises OSError, and then nothing stays open.

    The inbox is a SOCK_SEQPACKET pair: many may hold its write end, and bytes bound it. A datagram pair would hold 10
    messages (net.unix.max_dgram_qlen). No copy of its read end stays here: with its process go the sockets in it.
    """
    with ExitStack() as held, ExitStack() as own:
        arena = _keep(own, make_memory(f"shard-{shard}-arena", arena_bytes))
        shown = _keep(held, read_only_descriptor(arena))
        doorbell = _keep(held, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        inbox, read_end = _keep(held, writing.detach()), _keep(own, reading.detach())
        descriptors = OwnDescriptors(arena, _keep(own, os.dup(doorbell)), read_end)
        board = Board(held.enter_context(map_read_only(shown)))
        held.callback(board.release)
        own.pop_all()
        return Endpoint(shown, doorbell, inbox, board, held.pop_all()), descriptors


def make_ring_memory(slots: int) -> int:
    """A descriptor of an empty ring. Raises OSError."""
    descriptor = make_memory("ring", -(-ring_bytes(slots) // PAGE_BYTES) * PAGE_BYTES)
    with map_memory(descriptor) as memory, memoryview(memory) as view:
        make_ring(view, slots)
    return descriptor


def _keep(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor
