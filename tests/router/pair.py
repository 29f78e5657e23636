"""Two sides of a pair in one process: real rings and arenas in sealed memory, each mapped twice as by two processes."""

from __future__ import annotations

import os
from collections.abc import Callable

from shardserver.errors import ShardServerError
from shardserver.memory.arena import Arena
from shardserver.memory.board import BOARD_BYTES
from shardserver.memory.shared import make_memory, map_memory, map_read_only
from shardserver.router.answers import Answer
from shardserver.router.peer import Answered, Peer, Request, Rings
from shardserver.router.ring import Consumer, Producer
from tests.router.peers_pair import MIB, make_ring_memory

Outcome = Answer | ShardServerError


class Side:
    """One process: its arena, its end of the pair, and what it was asked and has not answered yet."""

    def __init__(self, other: int, arena_bytes: int = MIB) -> None:
        descriptor = make_memory("arena", BOARD_BYTES + arena_bytes)
        self.arena, self.shown = Arena(map_memory(descriptor)), map_read_only(descriptor)
        os.close(descriptor)
        self.asked: list[tuple[Request, Answered]] = []
        self.serve: Callable[[Request, Answered], None] = lambda request, answer: self.asked.append((request, answer))
        self.wakes = 0  # how often there was something to publish
        self.peer = Peer(other, self.arena, lambda request, answer: self.serve(request, answer), self._wake)
        self.peer.on_hello = self._on_hello

    def _wake(self) -> None:
        self.wakes += 1

    def _on_hello(self, peer: Peer, serving: bool) -> None:
        began, peer.is_serving = serving and not peer.is_serving, serving
        if began:
            peer.repeat_questions()

    def ask(self, got: list[Outcome], payload: object = None, inline: bytes = b"", *, survives: bool = True) -> object:
        return self.peer.ask(7, inline, payload, got.append, survives=survives)

    def answer(self, outcome: Outcome, place: int = 0) -> Request:
        """The request that was answered, the oldest unless told otherwise."""
        request, answered = self.asked.pop(place)
        answered(outcome)
        return request


def connect(one: Side, other: Side, slots: int = 16, *, serving: bool = True) -> None:
    """New rings between two sides; both say hello."""
    out, into = make_ring_memory(slots), make_ring_memory(slots)
    for side, sent, taken, shown in ((one, out[0], into[1], other.shown), (other, into[0], out[1], one.shown)):
        ends = Producer(memoryview(sent)), Consumer(memoryview(taken))
        side.peer.attach(Rings(*ends, shown, os.eventfd(0, os.EFD_NONBLOCK)), serving=serving)


def turn(*sides: Side) -> int:
    """One turn of each: show what was pushed, take what came. Gives how many slots were taken."""
    for one in sides:
        one.peer.publish()
    return sum(one.peer.drain() for one in sides)


def settle(*sides: Side) -> None:
    while turn(*sides):
        pass
    turn(*sides)  # what the last slots have freed may let go what waited
    while turn(*sides):
        pass


def die(dead: Side) -> None:
    """Its process ends; the other side learns of it by `detach` of its own."""
    rings, dead.peer.rings = dead.peer.rings, None
    assert rings is not None
    os.close(rings.doorbell)


def make_pair(arena_bytes: int = MIB, slots: int = 16) -> tuple[Side, Side]:
    """Sides 0 and 1, connected and past their hellos."""
    one, other = Side(1, arena_bytes), Side(0, arena_bytes)
    connect(one, other, slots)
    settle(one, other)
    return one, other
