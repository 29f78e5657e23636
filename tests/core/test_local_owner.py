"""What an owner does with repeats of a dead process' sends, and when its answers are shown; on the fault Disk."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from shardserver.core.calls import U64, CutCall, OffsetCall, Operation, PollCall, SendCall
from shardserver.core.load import LoadMeter
from shardserver.core.local_owner import LocalOwner
from shardserver.core.peer_service import PeerService
from shardserver.errors import Code, NotOwnerError, RejectedError, ShardServerError, StorageError
from shardserver.protocol.messages import BY_OFFSET, BY_TIMESTAMP, FIRST, LAST, NEXT
from shardserver.router.answers import Answer
from shardserver.router.peer import Request
from shardserver.storage.settings import LogSettings
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch, payloads_of
from tests.router.pair import Outcome as Answered
from tests.router.peers_pair import Process, join, until
from tests.storage.log_world import SETTINGS, abandon, append, made_disk, open_logs, read_numbers

Outcome = int | ShardServerError
POLL_HEAD_BYTES = 16


# Nothing is written that nobody waits for.
SILENT = replace(SETTINGS, linger_s=3600.0)


def batch_of(*numbers: int, size: int = 0) -> bytearray:
    return make_batch([b"%d " % number + b"x" * size for number in numbers])


class World:
    """An owner over real logs on a disk that outlives its processes."""

    def __init__(self) -> None:
        self.disk = made_disk(1)
        self.settings = SETTINGS
        self.owner = LocalOwner(LoadMeter(lambda: 0.0))
        self.logs: ShardLog

    async def start(self, *, is_restart: bool = False) -> None:
        self.logs = self.owner.logs = await open_logs(
            self.disk, answers_are_known=not is_restart, settings=self.settings
        )

    async def restart(self, settings: LogSettings = SETTINGS) -> None:
        abandon(self.logs)
        self.settings = settings
        self.disk = self.disk.after_kill(2)
        self.owner = LocalOwner(LoadMeter(lambda: 0.0))
        await self.start(is_restart=True)

    def ask(self, batch: bytes | bytearray, count: int = 1, *, uid: int = 1, floor: int = -1) -> list[Outcome]:
        """floor: from 0 on it is a repeat."""
        got: list[Outcome] = []
        call = SendCall(uid, count, max(0, floor))
        self.owner.send_from_peer(call, batch, got.append, is_repeat=floor >= 0)
        return got

    async def numbers(self, uid: int = 1) -> list[int]:
        return await read_numbers(self.logs, uid)


def run(work: Callable[[World], Awaitable[None]]) -> None:
    world = World()  # makes its disk on a loop of its own

    async def whole() -> None:
        await world.start()
        await work(world)
        await world.logs.close()

    asyncio.run(whole())


async def answers(*waiting: list[Outcome]) -> list[Outcome]:
    await until(lambda: all(waiting))
    return [one for got in waiting for one in got]


# Repeats


@pytest.mark.parametrize("stored", [0, 1, 2])
def test_two_equal_batches_are_there_twice_however_many_of_them_were_stored(stored: int) -> None:
    async def work(world: World) -> None:
        await append(world.logs, 1, number=100)
        for _ in range(stored):
            await answers(world.ask(batch_of(7)))
        await world.restart()
        first, second = world.ask(batch_of(7), floor=0), world.ask(batch_of(7), floor=0)
        assert await answers(first, second) == [1, 2]
        assert await world.numbers() == [100, 7, 7]

    run(work)


def test_each_stored_batch_answers_one_repeat() -> None:
    async def work(world: World) -> None:
        for _ in range(2):
            await answers(world.ask(batch_of(7, 8), 2))
        await world.restart()
        got = [world.ask(batch_of(7, 8), 2, floor=0) for _ in range(3)]
        assert await answers(*got) == [0, 2, 4]
        assert await world.numbers() == [7, 8] * 3

    run(work)


def test_what_lies_below_the_floor_was_answered_and_is_no_repeat_of_this_one() -> None:
    async def work(world: World) -> None:
        await answers(world.ask(batch_of(7)))
        await world.restart()
        assert await answers(world.ask(batch_of(7), floor=1)) == [1]
        assert await world.numbers() == [7, 7]

    run(work)


def test_a_floor_above_the_recovered_end_is_of_answers_that_were_lost() -> None:
    """`memory`: one death took 300 to 499, the repeat was stored at 300, and another death took its answer."""

    async def work(world: World) -> None:
        await answers(world.ask(batch_of(7)))
        await world.restart()
        assert await answers(world.ask(batch_of(7), floor=500)) == [0]
        assert await world.numbers() == [7]

    run(work)


def test_what_this_process_has_stored_itself_answers_no_repeat() -> None:
    async def work(world: World) -> None:
        assert await answers(world.ask(batch_of(7))) == [0]
        assert await answers(world.ask(batch_of(7), floor=0)) == [1]

    run(work)


def test_what_a_hint_covers_was_answered() -> None:
    async def work(world: World) -> None:
        await answers(world.ask(batch_of(7)))
        await world.logs.flush_partitions([world.logs.partition(1)])
        await append(world.logs, 2)  # the journal write that carries the hint
        await world.restart()
        assert world.logs.partition(1).answered_offset == 1
        assert await answers(world.ask(batch_of(7), floor=0)) == [1]

    run(work)


def test_a_batch_of_other_bytes_or_another_count_is_another_batch() -> None:
    async def work(world: World) -> None:
        await answers(world.ask(batch_of(7, 8), 2))
        await world.restart()
        got = [world.ask(batch_of(7), floor=0), world.ask(batch_of(7, 9), 2, floor=0)]
        assert await answers(*got) == [2, 3]
        assert await answers(world.ask(batch_of(7, 8), 2, floor=0)) == [0]

    run(work)


def test_a_large_batch_that_is_in_a_segment_is_found_there() -> None:
    async def work(world: World) -> None:
        batch = batch_of(7, size=40_000)
        await world.restart(SILENT)  # a hint would say that the run was answered
        await answers(world.ask(batch))
        await answers(world.ask(batch_of(8, size=40_000)))
        await world.restart()
        assert await answers(world.ask(batch, floor=0)) == [0]
        assert await world.numbers() == [7, 8]

    run(work)


def test_new_sends_stay_behind_repeats_of_their_partition_and_others_do_not_wait() -> None:
    async def work(world: World) -> None:
        await answers(world.ask(batch_of(1)))
        await world.restart()
        got = [world.ask(batch_of(number), floor=0) for number in (1, 2)]
        got += [world.ask(batch_of(3)), world.ask(batch_of(4))]
        elsewhere = world.ask(batch_of(90), uid=2)
        assert world.logs.partition(2).has_work and not world.logs.partition(1).has_work
        assert await answers(*got, elsewhere) == [0, 1, 2, 3, 0]
        assert await world.numbers() == [1, 2, 3, 4]
        await until(lambda: not world.owner._repeats)
        world.ask(batch_of(5))
        assert world.logs.partition(1).has_work  # no task of its own any more

    run(work)


def test_a_repeat_for_a_partition_that_is_not_here_is_told_so_and_holds_up_nothing() -> None:
    async def work(world: World) -> None:
        lost, after = world.ask(batch_of(7), uid=9, floor=0), world.ask(batch_of(7), floor=0)
        first, second = await answers(lost, after)
        assert isinstance(first, NotOwnerError) and second == 0
        with pytest.raises(NotOwnerError):
            world.ask(batch_of(7), uid=9)
        world.owner.logs = None
        assert isinstance((await answers(world.ask(batch_of(7), floor=0)))[0], NotOwnerError)

    run(work)


def test_a_repeat_that_cannot_be_read_is_refused_and_what_follows_it_goes_on() -> None:
    async def work(world: World) -> None:
        await answers(world.ask(batch_of(7, size=40_000)))
        await world.restart()
        world.disk.unreadable = "partitions"
        failed, new = world.ask(batch_of(7, size=40_000), floor=0), world.ask(batch_of(8))
        first, second = await answers(failed, new)
        world.disk.unreadable = ""
        assert isinstance(first, StorageError) and second == 1
        assert await world.numbers() == [7, 8]

    run(work)


def test_a_bug_amid_a_repeat_is_answered(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: World) -> None:
        async def fail(*arguments: object) -> int:
            raise ZeroDivisionError

        monkeypatch.setattr(world.owner, "_find_repeated", fail)
        assert isinstance((await answers(world.ask(batch_of(7), floor=0)))[0], StorageError)

    run(work)
    assert [record.message for record in caplog.records if record.name.endswith("local_owner")] == ["send_failed"]


# Peers


class Served:
    """The owner's shard and another that asks it."""

    def __init__(self, world: World) -> None:
        self.service = PeerService(world.owner)
        self.here, self.asker = Process(0, self.service.serve), Process(1, lambda request, answer: None)
        self.here.peers.serve_sends(world.owner.target_of)
        join(self.here, self.asker)

    def ask(self, operation: Operation, inline: bytes, payload: Any = None) -> list[Answered]:
        got: list[Answered] = []
        self.asker.peers.peer(0).ask(operation, inline, payload, got.append, survives=True)
        return got

    async def answer(self, operation: Operation, inline: bytes, payload: Any = None) -> Any:
        got = self.ask(operation, inline, payload)
        await until(lambda: bool(got))
        return got[0]

    def close(self) -> None:
        self.here.close()
        self.asker.close()


def poll(strategy: int, value: int = 0, count: int = 10, *, auto_commit: bool = False) -> bytes:
    return PollCall(1, value, count, 5, 1 << 20, 1, strategy, auto_commit).encode()


def test_a_peer_gets_what_a_client_of_the_owner_would_get() -> None:
    async def work(world: World) -> None:
        served = Served(world)
        for number in range(4):
            sent = await served.answer(Operation.SEND, SendCall(1, 1).encode(), bytes(batch_of(number, size=300)))
            assert sent.inline == U64.pack(number)
        expected = {
            (BY_OFFSET, 2): [2, 3],
            (FIRST, 0): [0, 1, 2, 3],
            (LAST, 0): [0, 1, 2, 3],
            (BY_TIMESTAMP, 0): [0, 1, 2, 3],
        }
        for (strategy, value), numbers in expected.items():
            body = (await served.answer(Operation.POLL, poll(strategy, value))).joined()
            assert [int(one.split()[0]) for one in payloads_of(body[POLL_HEAD_BYTES:])] == numbers
        stored = OffsetCall(1, 1, 5, 1, True).encode()
        assert (await served.answer(Operation.STORE_OFFSET, stored)).inline == b""
        assert (await served.answer(Operation.GET_OFFSET, stored)).inline == U64.pack(3) + U64.pack(1) + b"\1"
        body = (await served.answer(Operation.POLL, poll(NEXT, count=1, auto_commit=True))).joined()
        assert [int(one.split()[0]) for one in payloads_of(body[POLL_HEAD_BYTES:])] == [2]
        assert (await served.answer(Operation.GET_OFFSET, stored)).inline == U64.pack(3) + U64.pack(2) + b"\1"
        assert (await served.answer(Operation.DELETE_OFFSET, stored)).inline == b""
        assert (await served.answer(Operation.GET_OFFSET, stored)).inline == U64.pack(3) + bytes(9)
        assert (await served.answer(Operation.FIND_CUT, CutCall(1, 1).encode())).inline == U64.pack(0)
        served.close()

    run(work)


def test_what_a_peer_may_not_ask_is_answered_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: World) -> None:
        served = Served(world)
        served.service.control[Operation.INFO] = lambda request: b"%d" % (1 // 0)
        for operation, inline, kind in (
            (Operation.SEND, SendCall(9, 1).encode(), NotOwnerError),
            (Operation.POLL, PollCall(9, 0, 1, 1, 1, 1, 1, False).encode(), NotOwnerError),
            (Operation.GET_OFFSET, OffsetCall(9, 1, 1).encode(), NotOwnerError),
            (Operation.DELETE_OFFSET, OffsetCall(1, 1, 1).encode(), RejectedError),
            (15, b"", ShardServerError),
            (99, b"", ShardServerError),
            (Operation.INFO, b"", StorageError),
        ):
            assert type(await served.answer(operation, inline, b"x")) is kind, operation  # type: ignore[arg-type]
        served.close()

    run(work)
    assert "peer_request_failed" in [record.message for record in caplog.records]


def test_a_deletion_that_the_dead_process_has_done_is_done() -> None:
    async def work(world: World) -> None:
        service, got = PeerService(world.owner), []
        call = OffsetCall(1, 1, 5, 0, True).encode().ljust(40, b"\0")
        for is_repeat in (True, False):
            service.serve(Request(1, Operation.DELETE_OFFSET, call, memoryview(b""), is_repeat), got.append)
        await until(lambda: len(got) == 2)
        assert got[0] == Answer()
        assert isinstance(got[1], RejectedError) and got[1].code is Code.CONSUMER_OFFSET_NOT_FOUND

    run(work)


def test_requests_of_peers_leave_no_cycles_behind() -> None:
    async def work(world: World) -> None:
        served = Served(world)
        batch, offset = bytes(batch_of(1, size=300)), OffsetCall(1, 1, 5, 0, True).encode()

        async def ask_all() -> None:
            await served.answer(Operation.SEND, SendCall(1, 1).encode(), batch)
            await served.answer(Operation.POLL, poll(BY_OFFSET, 0, 1))
            await served.answer(Operation.POLL, poll(BY_TIMESTAMP, 0, 1))
            await served.answer(Operation.STORE_OFFSET, offset)
            await served.answer(Operation.GET_OFFSET, offset)
            await served.answer(Operation.SEND, SendCall(9, 1).encode(), batch)

        await ask_all()
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                await ask_all()
            await until(lambda: served.here.peers.peer(1).statistics().lent == served.asker.arena.used_bytes == 0)
            assert gc.collect() == 0
        finally:
            gc.enable()
        served.close()

    run(work)


def test_repeats_leave_no_cycles_behind() -> None:
    async def work(world: World) -> None:
        async def refused() -> None:
            kinds: list[type] = []  # not the error: its traceback names who keeps it
            call = SendCall(9, 1)
            world.owner.send_from_peer(call, b"", lambda outcome: kinds.append(type(outcome)), is_repeat=True)
            await until(lambda: bool(kinds))
            assert kinds == [NotOwnerError]

        await answers(world.ask(batch_of(7)))
        await world.restart()
        await answers(world.ask(batch_of(8), floor=0))
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                await answers(world.ask(batch_of(7), floor=0), world.ask(batch_of(9)), world.ask(batch_of(9), floor=0))
                await refused()
            assert gc.collect() == 0
        finally:
            gc.enable()

    run(work)


# Answers and hints


@pytest.mark.parametrize("size", [300, 40_000])
def test_an_answer_is_shown_before_the_write_with_the_hint_that_covers_its_batch(size: int) -> None:
    """Else the owner may die with the hint written and the answer not seen, and the repeat is not looked for there."""

    async def work(world: World) -> None:
        served = Served(world)
        await until(lambda: served.here.peers.peer(1).statistics().slots_taken == 1)
        world.logs.resources.hooks.before_submit = served.here.peers.publish
        published = served.asker.peers.peer(0).rings
        assert published is not None
        seen: list[int] = []
        write = world.disk.write

        def watch(file: Any, position: int, buffers: Any, **more: Any) -> Any:
            hint, data = world.logs.partition(1).hint(), b"".join(buffers)
            if "journal" in file.path and hint is not None and hint.next_offset and hint.encode() in data:
                seen.append(published.consumer.waiting())
            return write(file, position, buffers, **more)

        world.disk.write = watch  # type: ignore[method-assign]
        served.ask(Operation.SEND, SendCall(1, 1).encode(), bytes(batch_of(1, size=size)))
        await until(lambda: world.logs.partition(1).has_work)
        # From here on nothing but the hook shows what the owner's shard says, and the asker takes nothing.
        served.here.peers.schedule_publish = lambda: None  # type: ignore[method-assign]
        served.asker.peers._turn = lambda: None  # type: ignore[method-assign]
        await until(lambda: world.logs.partition(1).high_watermark == 1)
        await world.logs.flush_partitions([world.logs.partition(1)])
        await append(world.logs, 2)
        assert seen and min(seen) >= 1
        served.close()

    run(work)


def test_a_process_that_dies_before_its_repeats_came_leaves_them_to_be_found_by_the_next() -> None:
    async def work(world: World) -> None:
        await answers(world.ask(batch_of(7)))  # stored, and its answer was never published
        await world.restart()
        await world.logs.flush_partitions([world.logs.partition(1)])
        await append(world.logs, 2)
        await world.restart()
        assert await answers(world.ask(batch_of(7), floor=0)) == [0]
        assert await world.numbers() == [7]

    run(work)
