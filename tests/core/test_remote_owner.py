"""Another shard's partitions: refused, late, joined, repeated; on a loop whose time the test moves."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from shardserver.core.calls import U64, OffsetCall, Operation, PollCall, SendCall
from shardserver.core.remote_owner import ANSWER_DEADLINE_S, OUTCOME_KEPT_S, UNANSWERED_KEPT, RemoteOwner, Unanswered
from shardserver.errors import BackpressureError, Code, NotCommittedError, RejectedError, ShardServerError
from shardserver.router import peer, send_lane, send_lane_python
from shardserver.router.answers import Answer
from shardserver.router.peer import Answered, Request
from tests.moved_time import move, run_moved
from tests.router.peers_pair import Process, join, until

Outcome = int | ShardServerError
BATCH, OTHER_BATCH = b"one batch" * 100, b"another batch" * 100
POLL = PollCall(7, 0, 10, 1, 1 << 20, 1, 1, False)


@pytest.fixture(
    params=[
        pytest.param(("", send_lane), id="called"),
        pytest.param(("", send_lane_python), id="called, plain lane"),
        pytest.param(("target", send_lane), id="by target"),
        pytest.param(("target", send_lane_python), id="by target, plain lane"),
    ],
    autouse=True,
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How sends are made: by a call of the owner, or to a target, as routes do."""
    by_target, lane = request.param
    monkeypatch.setattr(World, "sends_by_target", bool(by_target))
    monkeypatch.setattr(peer, "SendLane", lane.SendLane)


def is_late(outcome: object) -> bool:
    return isinstance(outcome, NotCommittedError)


class World:
    """This shard, and shard 1 that answers when it is told to."""

    sends_by_target = False

    def __init__(self) -> None:
        self.here = Process(0, lambda request, answer: None)
        self.asked: list[tuple[Request, Answered]] = []
        self.owner = RemoteOwner(self.here.peers.peer(1), self.here.peers.now)
        self.unanswered: Unanswered = []  # of the connection
        self.there: Process

    async def start(self, *, serving: bool = True) -> None:
        self.asked.clear()
        self.there = Process(1, lambda request, answer: self.asked.append((request, answer)))
        join(self.here, self.there)
        if serving:
            self.there.peers.say_serving()
            await until(lambda: self.owner.peer.is_serving)

    async def restart(self) -> None:
        self.there.end(self.here)
        await self.start()

    def send(self, batch: bytes = BATCH, uid: int = 7, count: int = 3) -> list[Outcome]:
        got: list[Outcome] = []
        if self.sends_by_target:
            self.owner.target(uid, self.unanswered).send(self.here.arena.copy(batch), count, got.append)
        else:
            self.owner.send(SendCall(uid, count), batch, got.append, self.unanswered)
        return got

    async def asked_again(self, count: int) -> None:
        await until(lambda: len(self.asked) == count)

    def answer(self, base: int, place: int = 0) -> None:
        self.asked.pop(place)[1](Answer(U64.pack(base)))

    async def late(self, got: list[Outcome]) -> None:
        before = len(got)
        move(ANSWER_DEADLINE_S)
        await until(lambda: len(got) > before)
        assert is_late(got[-1])


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    await made.start()
    yield made
    made.here.close()
    made.there.close()


def test_a_shard_that_is_down_or_recovers_takes_nothing() -> None:
    async def work() -> None:
        made = World()
        with pytest.raises(BackpressureError):
            made.send()
        await made.start(serving=False)
        await until(lambda: made.owner.peer.statistics().slots_taken == 1)  # its hello
        with pytest.raises(BackpressureError):
            made.send()
        with pytest.raises(BackpressureError):
            await made.owner.poll(POLL)
        made.there.peers.say_serving()
        await until(lambda: made.owner.peer.is_serving)
        made.send()
        made.there.end(made.here)
        with pytest.raises(BackpressureError) as raised:
            made.send()
        assert not isinstance(raised.value, NotCommittedError)
        made.here.close()

    run_moved(work)


def test_a_send_gets_its_base_offset() -> None:
    async def work() -> None:
        async with world() as made:
            got = made.send()
            await made.asked_again(1)
            request = made.asked[0][0]
            assert (request.operation, SendCall.decode(request.inline)) == (Operation.SEND, SendCall(7, 3, 0))
            assert bytes(request.payload) == BATCH
            made.answer(900)
            await until(lambda: got == [900])

    run_moved(work)


def test_an_error_of_the_owner_comes_to_the_client() -> None:
    async def work() -> None:
        async with world() as made:
            got = made.send()
            await made.asked_again(1)
            made.asked.pop()[1](RejectedError(Code.INVALID_OFFSET))
            await until(lambda: len(got) == 1)
            assert isinstance(got[0], RejectedError) and got[0].code is Code.INVALID_OFFSET

    run_moved(work)


# Late


def test_57_comes_after_the_deadline_and_not_before() -> None:
    async def work() -> None:
        async with world() as made:
            first = made.send()
            await made.asked_again(1)
            move(5)
            second = made.send(OTHER_BATCH)
            await made.asked_again(2)
            move(ANSWER_DEADLINE_S - 5.5)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert first == second == []
            move(0.5)
            await until(lambda: len(first) == 1)
            assert is_late(first[0]) and second == []
            move(5)
            await until(lambda: len(second) == 1)
            assert is_late(second[0]) and len(made.unanswered) == 2

    run_moved(work)


def test_the_deadline_of_one_asked_long_after_another_is_its_own() -> None:
    async def work() -> None:
        async with world() as made:
            got = made.send()
            await made.asked_again(1)
            made.answer(1)
            await until(lambda: got == [1])
            move(19)
            second = made.send()
            await made.asked_again(1)
            move(1.5)  # the timer of the first one ends
            for _ in range(5):
                await asyncio.sleep(0)
            assert second == []
            await made.late(second)

    run_moved(work)


def test_an_identical_frame_joins_the_attempt_and_a_different_one_does_not() -> None:
    async def work() -> None:
        async with world() as made:
            first = made.send()
            await made.asked_again(1)
            await made.late(first)
            again, other = made.send(), made.send(OTHER_BATCH)
            elsewhere = made.send(uid=8)
            await made.asked_again(3)  # not four
            made.answer(10)
            await until(lambda: again == [10])
            assert other == elsewhere == [] and made.unanswered == [] and len(first) == 1

    run_moved(work)


def test_an_answer_that_came_meanwhile_is_that_of_the_identical_frame_once() -> None:
    async def work() -> None:
        async with world() as made:
            first = made.send()
            await made.asked_again(1)
            await made.late(first)
            made.answer(10)
            await until(lambda: made.unanswered[0].outcome == 10)
            assert made.send() == [10] and made.unanswered == []
            assert made.send() == []  # another one, which is stored again
            await made.asked_again(1)

    run_moved(work)


def test_who_joined_gets_57_again_and_may_join_again() -> None:
    async def work() -> None:
        async with world() as made:
            first = made.send()
            await made.asked_again(1)
            await made.late(first)
            for _ in range(3):
                await made.late(made.send())
            last = made.send()
            assert len(made.asked) == 1
            made.answer(4)
            await until(lambda: last == [4])
            assert made.unanswered == []

    run_moved(work)


def test_two_equal_sends_that_were_late_are_joined_by_two_frames_and_a_third_is_new() -> None:
    async def work() -> None:
        async with world() as made:
            first, second = made.send(), made.send()
            await made.asked_again(2)
            await made.late(first)
            assert is_late(second[0]) and len(made.unanswered) == 2
            again, and_again, new = made.send(), made.send(), made.send()
            await made.asked_again(3)
            made.answer(10)
            made.answer(13)
            made.answer(16)
            await until(lambda: bool(again and and_again and new))
            assert (again, and_again, new) == ([10], [13], [16]) and made.unanswered == []

    run_moved(work)


def test_a_connection_waits_for_64_late_sends_at_most() -> None:
    async def work() -> None:
        async with world() as made:
            got = [made.send(b"%d" % number) for number in range(UNANSWERED_KEPT)]
            await made.late(got[-1])
            assert len(made.unanswered) == UNANSWERED_KEPT
            with pytest.raises(BackpressureError) as raised:
                made.send(b"new")
            assert not is_late(raised.value)
            joined = made.send(b"63")
            assert joined == []

    run_moved(work)


def test_a_late_send_that_nobody_repeated_is_forgotten_after_a_while() -> None:
    """Else the connection could send nothing more some day, and a frame of an hour ago would swallow an equal one."""

    async def work() -> None:
        async with world() as made:
            first = made.send()
            await made.asked_again(1)
            await made.late(first)
            made.answer(10)
            await until(lambda: made.unanswered[0].outcome == 10)
            move(OUTCOME_KEPT_S)
            new = made.send()
            assert made.unanswered == []
            await made.asked_again(1)
            made.answer(20)
            await until(lambda: new == [20])

    run_moved(work)


def test_a_late_poll_is_answered_57_and_its_buffers_go_back() -> None:
    async def work() -> None:
        async with world() as made:
            poll = asyncio.ensure_future(made.owner.poll(POLL))
            await made.asked_again(1)
            move(ANSWER_DEADLINE_S)
            await until(poll.done)
            assert is_late(poll.exception())
            made.asked.pop()[1](Answer(b"", [b"x" * 5000]))
            await until(lambda: made.there.arena.used_bytes > 0)
            await until(lambda: made.there.arena.used_bytes == 0 and not made.owner.peer.questions)

    run_moved(work)


# Repeats


def test_a_repeat_carries_one_above_the_highest_offset_that_was_answered() -> None:
    async def work() -> None:
        async with world() as made:
            for base in (100, 103):
                got = made.send()
                await made.asked_again(1)
                made.answer(base)
                await until(lambda: len(got) == 1)  # noqa: B023
            waiting, elsewhere = made.send(), made.send(uid=8)
            await made.asked_again(2)
            await made.restart()
            await made.asked_again(2)
            calls = [SendCall.decode(request.inline) for request, _ in made.asked]
            assert [request.is_repeat for request, _ in made.asked] == [True, True]
            assert calls == [SendCall(7, 3, 106), SendCall(8, 3, 0)]
            assert bytes(made.asked[0][0].payload) == BATCH
            made.answer(106)
            made.answer(0)
            await until(lambda: waiting == [106] and elsewhere == [0])

    run_moved(work)


def test_what_the_dead_process_had_published_raises_the_floor() -> None:
    async def work() -> None:
        async with world() as made:
            said, not_said = made.send(), made.send(OTHER_BATCH)
            await made.asked_again(2)
            made.answer(50)
            made.there.peers.publish()
            made.answer(53)
            await made.restart()
            assert said == [50]
            await made.asked_again(1)
            assert SendCall.decode(made.asked[0][0].inline) == SendCall(7, 3, 53)
            made.answer(53)
            await until(lambda: not_said == [53])

    run_moved(work)


def test_a_late_send_is_still_repeated_and_its_answer_waits_for_the_identical_frame() -> None:
    async def work() -> None:
        async with world() as made:
            first = made.send()
            await made.asked_again(1)
            await made.late(first)
            await made.restart()
            await made.asked_again(1)
            again = made.send()
            made.answer(9)
            await until(lambda: again == [9])

    run_moved(work)


def test_other_requests_are_repeated_as_they_were() -> None:
    async def work() -> None:
        async with world() as made:
            work = [made.owner.poll(POLL), made.owner.get_offset(OffsetCall(7, 1, 2))]
            work += [made.owner.control(Operation.INFO, b"payload")]
            waiting = [asyncio.ensure_future(one) for one in work]
            await made.asked_again(3)
            first = [(request.operation, request.inline, bytes(request.payload)) for request, _ in made.asked]
            await made.restart()
            await made.asked_again(3)
            assert first == [(request.operation, request.inline, bytes(request.payload)) for request, _ in made.asked]
            made.asked.pop(0)[1](Answer(b"body"))
            made.asked.pop(0)[1](Answer(U64.pack(5) + U64.pack(3) + b"\1"))
            made.asked.pop(0)[1](Answer(b"", [b"long" * 100]))
            poll, offset, info = await asyncio.gather(*waiting)
            assert (b"".join(poll), offset, info) == (b"body", (5, 3), b"long" * 100)

    run_moved(work)


def test_a_stored_offset_that_is_not_there_is_none() -> None:
    async def work() -> None:
        async with world() as made:
            waiting = asyncio.ensure_future(made.owner.get_offset(OffsetCall(7, 1, 2)))
            await made.asked_again(1)
            made.asked.pop()[1](Answer(U64.pack(5) + bytes(9)))
            assert await waiting == (5, None)

    run_moved(work)


# Memory


class Batch(bytearray):
    """Can be watched."""


def test_requests_leave_neither_cycles_nor_what_they_held() -> None:
    async def work() -> None:
        async with world() as made:
            answers = {
                Operation.SEND: Answer(U64.pack(1)),
                Operation.GET_OFFSET: Answer(bytes(17)),
                Operation.STORE_OFFSET: Answer(),
                Operation.DELETE_OFFSET: RejectedError(Code.CONSUMER_OFFSET_NOT_FOUND),
            }
            lent = Answer(b"", [b"x" * 300])
            made.there.serve = lambda request, answer: answer(answers.get(Operation(request.operation), lent))
            watched = []

            async def ask_all() -> None:
                batch = Batch(b"b" * 500)
                watched.append(weakref.ref(batch))
                got: list[Outcome] = []
                made.owner.send(SendCall(7, 1), batch, got.append, made.unanswered)
                await until(lambda: bool(got))
                await made.owner.poll(POLL)
                await made.owner.get_offset(OffsetCall(7, 1, 2))
                await made.owner.store_offset(OffsetCall(7, 1, 2))
                with suppress(RejectedError):
                    await made.owner.delete_offset(OffsetCall(7, 1, 2))
                await made.owner.control(Operation.INFO, b"x")

            await ask_all()
            gc.collect()
            gc.disable()
            try:
                for _ in range(1000):
                    await ask_all()
                await until(lambda: made.there.arena.used_bytes == 0)
                assert all(one() is None for one in watched)
                assert made.here.arena.used_bytes == 0
                assert gc.collect() == 0
            finally:
                gc.enable()

    run_moved(work)
