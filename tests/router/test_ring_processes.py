"""Two real processes, two rings, two doorbells. Without the fences of ring.pyx a consumer would sleep for ever."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any

import pytest

from shardserver.memory.shared import make_memory, map_memory
from shardserver.router.ring import Consumer, Producer
from shardserver.router.ring_python import make_ring, ring_bytes

SLOTS_EACH_WAY, REQUESTS_EACH_WAY = 200_000, 30_000
# A lost doorbell is a hang: this ends it. A good run takes seconds, under ASan beside other work a minute.
WATCHDOG_S = 300
REQUEST, REPLY = 1, 2


@dataclass
class Side:
    """One process' ends: `inbox` and the doorbell that it sleeps at, `outbox` and the doorbell of its peer."""

    inbox: Consumer
    outbox: Producer
    own_bell: int
    peers_bell: int

    def publish(self) -> None:
        if self.outbox.publish():
            os.eventfd_write(self.peers_bell, 1)

    def sleep_until_rung(self) -> None:
        """Blocks in the kernel, without a timeout, unless there is something to take."""
        if self.inbox.try_park():
            os.eventfd_read(self.own_bell)
            self.inbox.unpark()


def stream_both_ways(side: Side) -> None:
    """As many slots as fit, and to sleep whenever nothing came in. Neither side runs more than half a ring ahead of
    what it has taken, so of two sides one has always something left to publish, and may.
    """
    sent = taken = 0
    while sent < SLOTS_EACH_WAY or taken < SLOTS_EACH_WAY:
        last = min(SLOTS_EACH_WAY, taken + side.outbox.slots // 2)
        while sent < last and side.outbox.try_push(REPLY, 0, 0, sent, sent * 3, b"", False):
            sent += 1
        side.publish()
        if sent < last:
            os.sched_yield()  # nobody rings for room; the peer is awake, as it has slots to take
        elif taken < SLOTS_EACH_WAY:
            side.sleep_until_rung()
        for slot in side.inbox.take(64):
            assert (slot[3], slot[4]) == (taken, taken * 3), f"slot {taken}: {slot}"
            taken += 1


def ask_and_answer(side: Side) -> None:
    """Both push requests until nothing fits, and answer what comes in: one reply a request, in order (decisions 5)."""
    asked = answered = replies = 0
    due: deque[int] = deque()
    while replies < REQUESTS_EACH_WAY or answered < REQUESTS_EACH_WAY:
        for kind, _, _, number, position, _ in side.inbox.take(64):
            if kind == REQUEST:
                assert number == answered + len(due)
                due.append(number)
            else:
                assert (number, position) == (replies, replies * 5)
                replies += 1
        while due and side.outbox.try_push(REPLY, 0, 0, due[0], due[0] * 5, b"", False):
            due.popleft()
            answered += 1
        while asked < REQUESTS_EACH_WAY and side.outbox.try_push(REQUEST, 0, 0, asked, 0, b"ask", True):
            asked += 1
        side.publish()
        has_more_to_push = due or (asked < REQUESTS_EACH_WAY and asked == replies)
        if has_more_to_push:
            os.sched_yield()  # nobody rings for room; the peer is awake, as it has slots to take
        elif replies < REQUESTS_EACH_WAY or answered < REQUESTS_EACH_WAY:
            side.sleep_until_rung()  # a reply to what we asked, or the peer's next request


def spin_and_publish(side: Side) -> None:
    """Never sleeps, so that it publishes as soon as the echo of its last slot is there: just when its peer parks."""
    for number in range(SLOTS_EACH_WAY):
        assert side.outbox.try_push(REPLY, 0, 0, number, 0, b"", False)
        side.publish()
        spins = 0
        while not side.inbox.waiting():
            spins += 1
            if spins % 1000 == 0:
                os.sched_yield()
        side.inbox.take(1)


def echo_and_park(side: Side) -> None:
    """Parks 0 to 2 us after its echo, the time that its peer takes to answer. A doorbell lost here is lost for good.

    Without the fence in `publish`, this hung in each of several runs on two cores of an EPYC; the other tests passed.
    """
    for number in range(SLOTS_EACH_WAY):
        side.sleep_until_rung()
        while not (taken := side.inbox.take(9)):  # a doorbell may come late, for a slot that is taken already
            side.sleep_until_rung()
        assert [slot[3] for slot in taken] == [number]
        assert side.outbox.try_push(REPLY, 0, 0, number, 0, b"", False)
        side.publish()
        for _ in range(number % 127):
            pass


class Handed:
    """Descriptors as an argument of a spawned process, which gets its own ones as a list."""

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors

    def __reduce__(self) -> tuple[Any, ...]:
        return detach, ([DupFd(one) for one in self._descriptors],)


def detach(handed: list[Any]) -> list[int]:
    return [one.detach() for one in handed]


def child(work: Callable[[Side], None], descriptors: list[int], outcome: Connection) -> None:
    inbox, outbox = (memoryview(map_memory(one)) for one in descriptors[:2])
    try:
        work(Side(Consumer(inbox), Producer(outbox), *descriptors[2:]))
        outcome.send("done")
    except BaseException as error:
        outcome.send(repr(error))
        raise


def run_pair(works: Sequence[Callable[[Side], None]], slots: int) -> list[str]:
    """Run works in two processes; what each of them said, `hangs` for one that did not end in time."""
    context = mp.get_context("spawn")
    rings = [make_memory("ring", ring_bytes(slots)) for _ in range(2)]
    for one in rings:
        with map_memory(one) as memory, memoryview(memory) as view:
            make_ring(view, slots)
    bells = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)]
    ends, said = [], []
    for own in range(2):
        receiving, sending = context.Pipe(duplex=False)
        handed = Handed([rings[own], rings[1 - own], bells[own], bells[1 - own]])
        process = context.Process(target=child, args=(works[own], handed, sending))
        process.start()
        sending.close()
        ends.append((process, receiving))
    for _, receiving in ends:
        try:
            said.append(receiving.recv() if receiving.poll(WATCHDOG_S) else "hangs")
        except EOFError:
            said.append("died")
    for process, receiving in ends:
        if said != ["done", "done"]:
            process.kill()
        process.join()
        process.close()
        receiving.close()
    for one in rings + bells:
        os.close(one)
    return said


@pytest.mark.parametrize("slots", [2, 8, 64])
def test_slots_cross_both_ways_in_order_between_consumers_that_sleep(slots: int) -> None:
    assert run_pair([stream_both_ways] * 2, slots) == ["done", "done"]


@pytest.mark.parametrize("slots", [2, 8, 64])
def test_two_rings_full_of_requests_lose_and_block_nothing(slots: int) -> None:
    assert run_pair([ask_and_answer] * 2, slots) == ["done", "done"]


def test_a_slot_published_just_while_its_consumer_parks_wakes_it() -> None:
    assert run_pair([spin_and_publish, echo_and_park], 2) == ["done", "done"]
