"""Two shards' peers on one loop, with doorbells; either's process can end and be followed by another."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable

from shardserver.memory.arena import Arena
from shardserver.memory.board import BOARD_BYTES
from shardserver.memory.shared import make_memory, map_memory, map_read_only
from shardserver.router.peer import Answered
from shardserver.router.peers import Peers, Request
from shardserver.router.ring_python import make_ring, ring_bytes

MIB = 1 << 20
Serve = Callable[[Request, Answered], None]


class Process:
    """One shard's process: arena, doorbell and peers. `serve` may be set later."""

    def __init__(self, number: int, serve: Serve, arena_bytes: int = 4 * MIB) -> None:
        self.number, self.serve = number, serve
        descriptor = make_memory("arena", BOARD_BYTES + arena_bytes)
        self.memory, self.shown = map_memory(descriptor), map_read_only(descriptor)
        os.close(descriptor)
        self.arena = Arena(self.memory, BOARD_BYTES)
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.peers = Peers(self.arena, self.doorbell, lambda request, answer: self.serve(request, answer))

    def end(self, survivor: Process) -> None:
        """As kill -9: what it has not published is not there."""
        self.peers.schedule_publish = lambda: None  # type: ignore[method-assign]
        for peer in self.peers:
            if peer.rings is not None:
                os.close(peer.rings.doorbell)
                peer.rings = None
        self.peers.close()
        survivor.peers.detach(self.number)

    def close(self) -> None:
        for peer in self.peers:
            peer.detach()
        self.peers.close()
        os.close(self.doorbell)


def make_ring_memory(slots: int) -> tuple[mmap.mmap, mmap.mmap]:
    """The same ring as its producer and as its consumer map it."""
    descriptor = make_memory("ring", -(-ring_bytes(slots) // 4096) * 4096)
    memory, again = map_memory(descriptor), map_memory(descriptor)
    os.close(descriptor)
    with memoryview(memory) as view:
        make_ring(view, slots)
    return memory, again


def join(one: Process, other: Process, slots: int = 16) -> tuple[mmap.mmap, mmap.mmap]:
    """New rings; gives the memory of that from `one` to `other`, and of that back."""
    there, back = make_ring_memory(slots), make_ring_memory(slots)
    one.peers.attach(other.number, there[0], back[1], other.shown, os.dup(other.doorbell))
    other.peers.attach(one.number, back[0], there[1], one.shown, os.dup(one.doorbell))
    return there[0], back[0]


async def until(holds: Callable[[], bool], turns: int = 10_000) -> None:
    """Some turns of the loop, with the kernel's events between them, until it holds."""
    for _ in range(turns):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never held")
