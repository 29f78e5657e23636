"""All peers of one process: the doorbell, taking what they have sent, showing what we send, once a turn of the loop."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial

from shardserver.errors import CorruptionError
from shardserver.memory.arena import Arena
from shardserver.protocol.sends import Target
from shardserver.router.peer import Answered, Peer, PeerStatistics, Question, Request, Rings, ServeRequest
from shardserver.router.ring import Consumer, Producer

log = logging.getLogger(__name__)

# Nobody tells a producer that its ring has room again, unless the peer has something to say itself.
RETRY_S = 0.001

FindTarget = Callable[[int], Target | None]

__all__ = ["Answered", "Peer", "PeerStatistics", "Peers", "Question", "Request"]


class Peers:
    """Owned by one shard's loop. serve: told of each request of a peer.

    on_corrupt: told that a ring or an arena holds what no peer writes. Slots are lost then: this process has to end, so
    that its next one gets new rings. Until it does, the peer counts as dead.
    """

    def __init__(self, arena: Arena, doorbell: int, serve: ServeRequest) -> None:
        self._arena, self._doorbell, self._serve = arena, doorbell, serve
        self._peers: dict[int, Peer] = {}
        self._publish_due = self._turn_due = False
        self._due: set[int] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._is_serving = False
        self._find_target: FindTarget | None = None
        self.on_serving: Callable[[int], None] = lambda number: None
        self.on_corrupt: Callable[[CorruptionError], None] = lambda error: None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(doorbell, self._on_doorbell)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def peer(self, number: int) -> Peer:
        """The peer of that number, whether it has a process or not."""
        if number not in self._peers:
            self._peers[number] = Peer(number, self._arena, self._serve, partial(self._note_due, number))
            self._peers[number].on_hello = self._on_hello
            self._peers[number].lane.find_target = self._find_target
        return self._peers[number]

    def _on_hello(self, peer: Peer, serving: bool) -> None:
        began, peer.is_serving = serving and not peer.is_serving, serving
        if began:
            peer.repeat_questions()
            self.on_serving(peer.number)

    def attach(self, number: int, out: mmap.mmap, into: mmap.mmap, arena: mmap.mmap, doorbell: int) -> Peer:
        """A process of the peer has begun. out, into: the rings to it and from it; doorbell: its eventfd."""
        peer = self.peer(number)
        rings = Rings(Producer(memoryview(out)), Consumer(memoryview(into)), arena, doorbell)
        peer.attach(rings, serving=self._is_serving)
        self._schedule_turn()
        return peer

    def detach(self, number: int) -> None:
        self.peer(number).detach()

    def say_serving(self) -> None:
        """Tell all: from now on we take requests for our partitions."""
        self._is_serving = True
        for peer in self._peers.values():
            peer.say_hello(serving=True)

    def serve_sends(self, find_target: FindTarget) -> None:
        """Sends of peers go to its targets, without `serve`. None: `serve` has to look at this one."""
        self._find_target = find_target
        for peer in self._peers.values():
            peer.lane.find_target = find_target

    def take_loads(self) -> list[tuple[int, int, int]]:
        """[(uid, requests, bytes)] of sends that were not served by `serve`, since the last call."""
        return [load for peer in self._peers.values() for load in peer.lane.take_loads()]

    def now(self) -> float:
        return self._loop.time()

    # The loop

    def _note_due(self, number: int) -> None:
        """That peer has something to publish. With many of them, those that have nothing are not looked at."""
        self._due.add(number)
        self.schedule_publish()

    def schedule_publish(self) -> None:
        if not self._publish_due and not self._loop.is_closed():  # a loan may end with the process
            self._publish_due = True
            self._loop.call_soon(self.publish)

    def publish(self) -> None:
        """One store of each tail, and a doorbell for each peer that sleeps."""
        self._publish_due = False
        for number in list(self._due):
            peer = self._peers[number]
            self._guarded(peer, peer.publish)
            if not peer.has_waiting:
                self._due.discard(number)
        if self._due and self._retry is None:
            self._retry = self._loop.call_later(RETRY_S, self._end_retry)

    def _end_retry(self) -> None:
        self._retry = None
        self.publish()

    def _on_doorbell(self) -> None:
        try:
            os.eventfd_read(self._doorbell)
        except BlockingIOError:
            return
        for peer in self._peers.values():
            peer.lane.unpark()
        self._turn()

    def _schedule_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """A bounded number of slots of each peer. Sleep only after a turn that found none: who has just sent something
        will send more, and a doorbell costs both sides more than a look at the rings.
        """
        self._turn_due = False
        busy = [peer for peer in self._peers.values() if peer.lane.has_slots()]
        for peer in busy:
            self._guarded(peer, peer.drain)
        if busy or not self._try_park():
            self._schedule_turn()

    def exchange(self) -> None:
        """What is due leaves, and what has come is taken."""
        if self._due:
            self.publish()
        for peer in self._peers.values():
            if peer.lane.has_slots():
                self._guarded(peer, peer.drain)

    def _try_park(self) -> bool:
        return all([peer.lane.try_park() for peer in self._peers.values()])  # all of them: each park counts

    def _guarded(self, peer: Peer, step: Callable[[], object]) -> object:
        try:
            return step()
        except CorruptionError as error:
            log.critical("ring_corrupt", extra={"fields": {"peer": peer.number, "error": str(error)}})
            peer.detach()
            self.on_corrupt(error)
            return None

    def statistics(self) -> list[PeerStatistics]:
        return [peer.statistics() for peer in self._peers.values()]

    def close(self) -> None:
        self._loop.remove_reader(self._doorbell)
        if self._retry is not None:
            self._retry.cancel()
