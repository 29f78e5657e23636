"""Peers on a loop: doorbells, hellos, who is asked again, rings that are full or corrupt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from shardserver.errors import BackpressureError, CorruptionError
from shardserver.router.answers import Answer
from shardserver.router.peer import Answered, Request
from tests.router.pair import Outcome
from tests.router.peers_pair import Process, join, until

pytestmark = pytest.mark.usefixtures("lane")


def echo(request: Request, answer: Answered) -> None:
    answer(Answer(request.inline.rstrip(b"\0")))


@asynccontextmanager
async def two(slots: int = 16) -> AsyncIterator[tuple[Process, Process]]:
    one, other = Process(0, echo), Process(1, echo)
    join(one, other, slots)
    one.peers.say_serving()
    other.peers.say_serving()
    await until(lambda: one.peers.peer(1).is_serving and other.peers.peer(0).is_serving)
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def asleep(process: Process) -> bool:
    return all(peer.rings is None or peer.rings.consumer.try_park() for peer in process.peers)


def test_a_request_wakes_a_peer_that_sleeps_and_its_answer_wakes_who_asked() -> None:
    async def work() -> None:
        async with two() as (one, other):
            for number in range(20):
                await until(lambda: asleep(one) and asleep(other), 100)
                got: list[Outcome] = []
                one.peers.peer(1).ask(7, b"%d" % number, None, got.append, survives=True)
                await until(lambda: bool(got))  # noqa: B023
                assert isinstance(got[0], Answer) and got[0].inline == b"%d" % number

    run(work)


def test_many_requests_of_one_turn_ring_once() -> None:
    async def work() -> None:
        async with two(64) as (one, other):
            await until(lambda: asleep(one) and asleep(other), 100)
            before = one.peers.peer(1).statistics()
            got: list[Outcome] = []
            for _ in range(20):
                one.peers.peer(1).ask(7, b"x", None, got.append, survives=True)
            await until(lambda: len(got) == 20)
            after = one.peers.peer(1).statistics()
            assert after.slots_sent - before.slots_sent == 20 and after.doorbells - before.doorbells == 1

    run(work)


def test_what_found_no_slot_is_pushed_later_without_another_request() -> None:
    async def work() -> None:
        async with two(4) as (one, other):
            got: list[Outcome] = []
            for number in range(200):
                one.peers.peer(1).ask(7, b"%d" % number, None, got.append, survives=True)
                other.peers.peer(0).ask(7, b"%d" % number, None, lambda outcome: None, survives=True)
            async with asyncio.timeout(30):
                while len(got) < 200:
                    await asyncio.sleep(0.001)
            assert [answer.inline for answer in got if isinstance(answer, Answer)] == [b"%d" % n for n in range(200)]

    run(work)


def test_a_peer_is_served_only_from_its_hello_on_and_says_so_once() -> None:
    async def work() -> None:
        one, other = Process(0, echo), Process(1, echo)
        told: list[int] = []
        one.peers.on_serving = told.append
        join(one, other)
        await until(lambda: one.peers.peer(1).statistics().slots_taken == 1)
        assert not one.peers.peer(1).is_serving and told == []
        other.peers.say_serving()
        other.peers.say_serving()
        await until(lambda: one.peers.peer(1).statistics().slots_taken == 3)
        assert one.peers.peer(1).is_serving and told == [1]
        other.end(one)
        assert not one.peers.peer(1).is_serving
        heir = Process(1, echo)
        join(one, heir)
        heir.peers.say_serving()
        await until(lambda: one.peers.peer(1).is_serving)
        assert told == [1, 1]
        one.close()
        heir.close()

    run(work)


def test_a_process_that_serves_says_so_to_one_that_comes_later() -> None:
    async def work() -> None:
        one = Process(0, echo)
        one.peers.say_serving()
        late = Process(1, echo)
        join(one, late)
        await until(lambda: late.peers.peer(0).is_serving)
        one.close()
        late.close()

    run(work)


def test_the_next_process_is_asked_what_the_dead_one_left_before_anything_new() -> None:
    async def work() -> None:
        async with two() as (one, other):
            asked: list[tuple[bytes, bool]] = []

            def remember(request: Request, answer: Answered) -> None:
                asked.append((request.inline.rstrip(b"\0"), request.is_repeat))
                echo(request, answer)

            other.serve = lambda request, answer: None
            got: list[Outcome] = []
            for number in range(3):
                one.peers.peer(1).ask(7, b"%d" % number, None, got.append, survives=True)
            await until(lambda: other.peers.peer(0).statistics().slots_taken >= 5)
            other.end(one)
            heir = Process(1, remember)
            join(one, heir)
            one.peers.on_serving = lambda number: one.peers.peer(1).ask(7, b"new", None, got.append, survives=True)
            heir.peers.say_serving()
            await until(lambda: len(got) == 4)
            assert asked == [(b"0", True), (b"1", True), (b"2", True), (b"new", False)]
            heir.close()

    run(work)


def test_a_corrupt_ring_ends_one_peer_and_is_told_while_others_are_served(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with two() as (one, other):
            third = Process(2, echo)
            join(one, third)
            third.peers.say_serving()
            await until(lambda: one.peers.peer(2).is_serving)
            told: list[CorruptionError] = []
            one.peers.on_corrupt = told.append
            peer = other.peers.peer(0)
            assert peer.rings is not None
            peer.rings.producer.try_push(99, 0, 0, 0, 0, b"", False)
            got: list[Outcome] = []
            peer.ask(7, b"x", None, got.append, survives=True)
            await until(lambda: bool(told))
            assert one.peers.peer(1).rings is None and not one.peers.peer(1).is_serving
            one.peers.peer(2).ask(7, b"still there", None, got.append, survives=True)
            await until(lambda: bool(got))
            assert isinstance(got[0], Answer) and got[0].inline == b"still there"
            third.close()

    run(work)
    assert "ring_corrupt" in [record.message for record in caplog.records]


@pytest.mark.parametrize(("ring", "position"), [(0, 128), (1, 64)], ids=("head", "tail"))
def test_a_head_or_tail_that_cannot_be_is_told_once_and_stops_nothing_else(ring: int, position: int) -> None:
    async def work() -> None:
        one, other = Process(0, echo), Process(1, echo)
        rings = join(one, other)
        for process in (one, other):
            process.peers.say_serving()
        await until(lambda: one.peers.peer(1).is_serving)
        told: list[CorruptionError] = []
        one.peers.on_corrupt = told.append
        got: list[Outcome] = []
        rings[ring][position : position + 8] = (2**40).to_bytes(8, "little")
        one.peers.peer(1).ask(7, b"x", None, got.append, survives=False)
        one.peers.publish()  # as the log does before it writes: nothing may be raised there
        one.peers._schedule_turn()
        await until(lambda: bool(told))
        assert one.peers.peer(1).rings is None and len(told) == 1
        assert len(got) == 1 and isinstance(got[0], BackpressureError)
        one.close()
        other.close()

    run(work)


def test_a_loan_that_ends_after_the_loop_is_no_error() -> None:
    kept: list[Outcome] = []

    async def work() -> None:
        async with two() as (one, other):
            other.serve = lambda request, answer: answer(Answer(b"", [b"a" * 3000]))
            one.peers.peer(1).ask(7, b"", None, kept.append, survives=True)
            await until(lambda: bool(kept))

    run(work)
    assert isinstance(kept[0], Answer) and kept[0].joined() == b"a" * 3000
    kept.clear()
