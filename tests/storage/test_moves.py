"""Partitions that leave one shard's log and arrive in another's: what moves, what is refused, what is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import pytest

from shardserver.errors import CorruptionError, DiskFullError, NotOwnerError, StorageError
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.handover import ReleasedPartition
from shardserver.storage.settings import Durability
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch
from tests.storage.log_world import SETTINGS, append, read_numbers
from tests.storage.move_world import LockingDisk, Owner, Shards, World

A, B = 0, 1


def in_world(
    life: Callable[[Shards], Awaitable[None]], durability: Durability = Durability.FSYNC, world: World | None = None
) -> World:
    """Both shards in one process, through one life and a clean stop."""
    world = world or World(LockingDisk(1), durability)

    async def run() -> None:
        shards = await world.start()
        await life(shards)
        await shards.close()

    asyncio.run(run())
    return world


def after_crash(world: World, check: Callable[[Shards], Awaitable[None]], *, power_loss: bool = True) -> None:
    world.crash(3, power_loss=power_loss)

    async def run() -> None:
        shards = await world.start()
        await check(shards)
        shards.abandon()

    asyncio.run(run())


async def stored(logs: ShardLog, consumer: int, offset: int | None, uid: int = 1) -> None:
    """Set and, once it is durable, return; None deletes."""
    outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    if offset is None:
        logs.offsets.delete(logs.partition(uid), 1, consumer, outcome.set_result)
    else:
        logs.offsets.store(logs.partition(uid), 1, consumer, offset, outcome.set_result)
    assert await outcome is None


def offsets_of(logs: ShardLog, *consumers: int, uid: int = 1) -> list[int | None]:
    return [logs.offsets.get(uid, 1, consumer) for consumer in consumers]


# What moves


@pytest.mark.parametrize("durability", list(Durability))
def test_a_partition_goes_there_and_back_with_its_messages_and_offsets(durability: Durability) -> None:
    async def life(shards: Shards) -> None:
        await append(shards.logs[A], 1, 10)
        for consumer in (7, 8):
            await stored(shards.logs[A], consumer, 9)
        await shards.move([1], B)
        assert await append(shards.logs[B], 1, 5, number=10) == 10
        await stored(shards.logs[B], 7, 2)  # backwards
        await stored(shards.logs[B], 8, None)
        await shards.move([1], A)
        assert await append(shards.logs[A], 1, 1, number=15) == 15
        assert await read_numbers(shards.logs[A], 1) == list(range(16))
        assert offsets_of(shards.logs[A], 7, 8) == [2, None]
        with pytest.raises(KeyError):
            shards.logs[B].partition(1)

    async def check(shards: Shards) -> None:
        assert await read_numbers(shards.logs[A], 1) == list(range(16))
        assert offsets_of(shards.logs[A], 7, 8) == [2, None]

    world = in_world(life, durability)
    assert world.owners[1] == Owner(A, 3)
    after_crash(world, check)


def test_many_segments_move_and_are_read_by_offset_and_by_timestamp() -> None:
    async def life(shards: Shards) -> None:
        for number in range(40):
            await append(shards.logs[A], 1, 1, number=number, size=9000)
        assert len(shards.logs[A].partition(1).segments) > 3
        first = shards.logs[A].partition(1).segments[1].previous_timestamp
        offset = await shards.logs[A].partition(1).reader.offset_at(first)
        await shards.move([1], B)
        log = shards.logs[B].partition(1)
        assert await read_numbers(shards.logs[B], 1) == list(range(40))
        assert await log.reader.offset_at(first) == offset > 0
        assert await log.delete_segments(2) == 2
        assert await append(shards.logs[B], 1, 1, number=40) == 40
        assert (await read_numbers(shards.logs[B], 1))[0] == log.first_offset > 0

    in_world(life)


def test_timestamps_go_on_where_the_former_owner_was() -> None:
    async def life(shards: Shards) -> None:
        for _ in range(50):
            await append(shards.logs[A], 1)
        last = shards.logs[A].partition(1).last_timestamp
        await shards.move([1], B)
        assert shards.logs[B].partition(1).last_timestamp == last
        await append(shards.logs[B], 1)
        assert shards.logs[B].partition(1).last_timestamp >= last

    in_world(life)


def test_more_offsets_than_a_journal_write_holds_arrive_whole() -> None:
    consumers = range(3000)  # 40 bytes each, 32 KiB a write

    async def life(shards: Shards) -> None:
        await append(shards.logs[A], 1, 5)
        for consumer in consumers:
            shards.logs[A].offsets.store(shards.logs[A].partition(1), 1, consumer, consumer % 5, None)
        await shards.move([1], B)
        shards.abandon()

    async def check(shards: Shards) -> None:
        assert offsets_of(shards.logs[B], *consumers) == [consumer % 5 for consumer in consumers]

    world = World(LockingDisk(1))

    async def run() -> None:
        await life(await world.start())

    asyncio.run(run())
    after_crash(world, check)


def test_a_memory_topics_offset_that_a_crash_has_cut_moves_as_it_was_cut() -> None:
    world = World(LockingDisk(1), Durability.MEMORY)

    async def lose() -> None:
        shards = await world.start()
        await append(shards.logs[A], 1, 10)
        await shards.logs[A].flush_partitions([shards.logs[A].partition(1)])
        await append(shards.logs[A], 1, 10)
        for log in shards.logs[A]._turn.dirty_logs():
            shards.logs[A]._turn.take(log)  # the offset is journaled, the messages are not
        await stored(shards.logs[A], 7, 19)
        shards.abandon()

    async def move(shards: Shards) -> None:
        assert offsets_of(shards.logs[A], 7) == [9]
        await shards.move([1], B)
        await append(shards.logs[B], 1, 30)
        assert offsets_of(shards.logs[B], 7) == [9]
        await shards.logs[B].flush_partitions([shards.logs[B].partition(1)])

    async def check(shards: Shards) -> None:
        assert offsets_of(shards.logs[B], 7) == [9] and shards.logs[B].partition(1).next_offset == 40

    asyncio.run(lose())
    after_crash(world, move)
    after_crash(world, check)


def test_a_thousand_empty_partitions_cost_a_few_operations_of_the_disk() -> None:
    uids = range(1, 1001)
    ring = replace(SETTINGS, journal_file_bytes=4 << 20, journal_files=17, max_write_bytes=1 << 20)

    async def life(shards: Shards) -> None:
        before = shards.world.disk.operations
        await shards.move(uids, B)
        assert shards.world.disk.operations - before < 20
        assert await append(shards.logs[B], 500) == 0

    in_world(life, world=World(LockingDisk(1), uids=uids, settings=ring))


def test_a_released_partition_travels_as_msgpack() -> None:
    state = ReleasedPartition(3, 4, 12288, 9, 5, [(1, 7, 8), (2, 0xFFFFFFFF, 1 << 40)])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=ReleasedPartition) == state


# What is refused, and when


def test_what_waits_at_a_release_is_answered_and_what_comes_later_is_refused() -> None:
    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        log = logs.partition(1)
        waiting = [asyncio.ensure_future(append(logs, 1, 1, number=number, size=5000)) for number in range(20)]
        await asyncio.sleep(0)
        releasing = asyncio.ensure_future(logs.moves.release_partition(1))
        await asyncio.sleep(0)
        with pytest.raises(NotOwnerError):
            await append(logs, 1)
        with pytest.raises(NotOwnerError):
            logs.offsets.store(log, 1, 7, 0, None)
        with pytest.raises(NotOwnerError):
            logs.offsets.commit_at_least(log, 1, 7, 0)
        with pytest.raises(NotOwnerError):
            await log.delete_segments(1)
        state = await releasing
        assert [one.result() for one in waiting] == list(range(20)) and state.next_offset == 20
        await logs.moves.resume_partition(1)
        assert await read_numbers(logs, 1) == list(range(20))

    in_world(life)


def test_after_a_release_nothing_is_read_and_no_file_is_held() -> None:
    async def life(shards: Shards) -> None:
        logs, disk = shards.logs[A], shards.world.disk
        await append(logs, 1, 5)
        await stored(logs, 7, 3)
        log = logs.partition(1)
        await logs.moves.release_partition(1)
        with pytest.raises(NotOwnerError):
            log.reader.try_read(0, 5, 1000)
        with pytest.raises(NotOwnerError):
            await log.reader.read(0, 5, 1000)
        with pytest.raises(NotOwnerError):
            await log.reader.offset_at(0)
        with pytest.raises(NotOwnerError):
            offsets_of(logs, 7)
        with pytest.raises(NotOwnerError):
            await logs.moves.release_partition(1)
        with pytest.raises(NotOwnerError):
            logs.moves.activate_partition(1)
        assert not any(disk.is_held(node) for path, node in disk.files.items() if "partitions" in path)
        await logs.moves.resume_partition(1)
        assert offsets_of(logs, 7) == [3] and await read_numbers(logs, 1) == list(range(5))

    in_world(life)


def test_a_poll_in_flight_ends_whole_or_is_refused() -> None:
    ends: set[str] = set()

    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        for number in range(20):
            await append(logs, 1, 1, number=number, size=9000)
        await logs.flush_partitions([logs.partition(1)])
        for steps in [*range(0, 60, 3), 1000]:
            log = shards.owner(1).partition(1)
            while log.tail.evict_oldest(log.flushed_end):
                pass
            poll = asyncio.ensure_future(log.reader.read(0, 20, 1 << 20))
            for _ in range(steps):
                await asyncio.sleep(0)
            await shards.move([1], 1 - shards.world.owners[1].shard)
            try:
                assert (await poll).count == 20
                ends.add("whole")
            except NotOwnerError:
                ends.add("refused")
        assert await read_numbers(shards.owner(1), 1) == list(range(20))

    in_world(life)
    assert ends == {"whole", "refused"}


def test_an_adopted_partition_serves_only_from_its_activation_on() -> None:
    async def life(shards: Shards) -> None:
        await append(shards.logs[A], 1, 5)
        state = await shards.logs[A].moves.release_partition(1)
        log = await shards.logs[B].moves.adopt_partition(shards.world.identity(1, 2), state)
        with pytest.raises(NotOwnerError):
            await append(shards.logs[B], 1)
        with pytest.raises(NotOwnerError):
            log.reader.try_read(0, 5, 1000)
        with pytest.raises(StorageError, match="here already"):
            await shards.logs[B].moves.adopt_partition(shards.world.identity(1, 2), state)
        shards.world.owners[1] = Owner(B, 2)
        shards.logs[B].moves.activate_partition(1)
        shards.logs[A].forget_partition(1)
        assert await append(shards.logs[B], 1) == 5

    in_world(life)


def test_a_fenced_partition_is_not_released_and_the_others_of_its_batch_serve_on() -> None:
    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        await append(logs, 2)
        logs.partition(1).fence(StorageError("damaged"))
        with pytest.raises(StorageError, match="damaged"):
            await logs.moves.release_partitions([2, 1])
        assert await append(logs, 2) == 1

    in_world(life)


def test_a_release_ends_when_a_flush_that_it_waits_for_fails() -> None:
    async def life(shards: Shards) -> None:
        logs, disk = shards.logs[A], shards.world.disk
        await append(logs, 1, 3)
        disk.is_broken = True
        flushing = asyncio.ensure_future(logs.flush_partitions([logs.partition(1)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert logs.partition(1).running
        releasing = asyncio.ensure_future(logs.moves.release_partition(1))
        with pytest.raises(StorageError):
            await flushing
        disk.is_broken = False
        begun = asyncio.get_running_loop().time()
        await releasing
        assert asyncio.get_running_loop().time() - begun < 0.5
        await logs.moves.resume_partition(1)
        assert await append(logs, 1) == 3

    in_world(life)


def test_a_release_ends_when_its_partition_is_fenced_meanwhile() -> None:
    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        waiting = asyncio.ensure_future(append(logs, 1))
        await asyncio.sleep(0)
        releasing = asyncio.ensure_future(logs.moves.release_partition(1))
        await asyncio.sleep(0)
        logs.partition(1).fence(StorageError("half changed"))
        with pytest.raises(StorageError, match="half changed"):
            await waiting
        with pytest.raises(StorageError, match="half changed"):
            await releasing

    in_world(life)


def test_a_release_on_a_full_disk_fails_and_the_partition_goes_on() -> None:
    async def life(shards: Shards) -> None:
        logs, disk = shards.logs[A], shards.world.disk
        await append(logs, 1, 3, size=2000)
        await stored(logs, 7, 1)
        disk.capacity_bytes = disk._used()
        with pytest.raises(DiskFullError):
            await logs.moves.release_partition(1)
        disk.capacity_bytes = None
        assert await append(logs, 1, 1, number=3) == 3
        assert offsets_of(logs, 7) == [1]
        await shards.move([1], B)
        assert await read_numbers(shards.logs[B], 1) == [0, 1, 2, 3]

    in_world(life)


# What is given up


def test_a_cancelled_release_is_undone_by_resume() -> None:
    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        await append(logs, 1, 5)
        releasing = asyncio.ensure_future(logs.moves.release_partition(1))
        await asyncio.sleep(0)
        releasing.cancel()
        await logs.moves.resume_partition(1)
        assert await append(logs, 1, 1, number=5) == 5
        assert await read_numbers(logs, 1) == list(range(6))

    in_world(life)


@pytest.mark.parametrize("between", ["nothing", "snapshot", "other file", "restart"])
def test_what_an_attempt_that_was_given_up_has_left_does_not_come_back_with_the_next_one(between: str) -> None:
    """Both under the same term: consumer 8 is deleted between them, and 7 is set backwards."""
    world = World(LockingDisk(1))

    async def first() -> None:
        shards = await world.start()
        await append(shards.logs[A], 1, 10)
        for consumer in (7, 8):
            await stored(shards.logs[A], consumer, 9)
        state = await shards.logs[A].moves.release_partition(1)
        await shards.logs[B].moves.adopt_partition(world.identity(1, 2), state)
        if between in ("snapshot", "other file"):
            await shards.logs[B]._snapshot_offsets()
        if between == "other file":
            shards.logs[B].journal.rotate()
        shards.logs[B].forget_partition(1)
        await shards.logs[A].moves.resume_partition(1)
        if between == "restart":
            await shards.close()
            shards = await world.start()
        await stored(shards.logs[A], 7, 3)
        await stored(shards.logs[A], 8, None)
        await shards.move([1], B)
        shards.abandon()

    async def check(shards: Shards) -> None:
        assert offsets_of(shards.logs[B], 7, 8) == [3, None]
        assert await read_numbers(shards.logs[B], 1) == list(range(10))
        assert shards.logs[B].partition(1).answered_offset == 10

    asyncio.run(first())
    after_crash(world, check)
    after_crash(world, check)


@pytest.mark.parametrize("snapshots", [1, 2])
def test_the_offsets_of_an_adoption_survive_the_reuse_of_its_journal_file(snapshots: int) -> None:
    world = World(LockingDisk(1))

    async def first() -> None:
        shards = await world.start()
        await append(shards.logs[A], 1, 10)
        await stored(shards.logs[A], 7, 9)
        await shards.move([1], B)
        former = shards.logs[B].journal.sequence
        for number in range(200 * snapshots):  # round the ring
            await append(shards.logs[B], 1, 1, number=10 + number, size=3000)
        assert shards.logs[B].journal.sequence > former + 3
        shards.abandon()

    async def check(shards: Shards) -> None:
        assert offsets_of(shards.logs[B], 7) == [9]
        assert await read_numbers(shards.logs[B], 1) == list(range(10 + 200 * snapshots))

    asyncio.run(first())
    after_crash(world, check)


def test_without_its_event_an_adoption_counts_for_nothing() -> None:
    world = World(LockingDisk(1))

    async def first() -> None:
        shards = await world.start()
        await append(shards.logs[A], 1, 10)
        await stored(shards.logs[A], 7, 9)
        state = await shards.logs[A].moves.release_partition(1)
        await shards.logs[B].moves.adopt_partition(world.identity(1, 2), state)
        shards.abandon()

    async def check(shards: Shards) -> None:
        assert await read_numbers(shards.logs[A], 1) == list(range(10))
        assert offsets_of(shards.logs[A], 7) == [9]
        assert offsets_of(shards.logs[B], 7) == [None]
        with pytest.raises(KeyError):
            shards.logs[B].partition(1)

    asyncio.run(first())
    after_crash(world, check)


@pytest.mark.parametrize("change", ["longer", "shorter", "another segment", "gone"])
def test_files_that_are_not_as_they_were_released_are_not_adopted_and_not_touched(change: str) -> None:
    async def life(shards: Shards) -> None:
        disk = shards.world.disk
        await append(shards.logs[A], 1, 10)
        state = await shards.logs[A].moves.release_partition(1)
        path = next(path for path in disk.files if "partitions" in path and path.endswith(".log"))
        good = bytes(disk.files[path].current)
        if change == "longer":
            disk.files[path].current += bytes(4096)
        elif change == "shorter":
            del disk.files[path].current[4096:]
        elif change == "another segment":
            disk.files[path[:-5] + "9.log"] = disk.files[path]
        else:
            node = disk.files.pop(path)
        before = {path: bytes(node.current) for path, node in disk.files.items() if "partitions" in path}
        with pytest.raises(CorruptionError):
            await shards.logs[B].moves.adopt_partition(shards.world.identity(1, 2), state)
        assert {path: bytes(node.current) for path, node in disk.files.items() if "partitions" in path} == before
        with pytest.raises(CorruptionError):
            await shards.logs[A].moves.resume_partition(1)
        with pytest.raises(NotOwnerError):
            await append(shards.logs[A], 1)
        if change == "gone":
            disk.files[path] = node
        disk.files.pop(path[:-5] + "9.log", None)
        disk.files[path].current[:] = good
        await shards.logs[A].moves.resume_partition(1)
        assert await read_numbers(shards.logs[A], 1) == list(range(10))

    in_world(life)


def test_what_a_failed_run_left_behind_is_removed_before_the_files_are_given_away() -> None:
    async def life(shards: Shards) -> None:
        logs, disk = shards.logs[A], shards.world.disk
        await append(logs, 1, 3)
        await logs.flush_partitions([logs.partition(1)])
        log = logs.partition(1)
        disk.files[log.segments[-1].path].current += bytes(8192)
        stray = log.segments[-1].path[:-5] + "8.log"
        disk.files[stray] = type(disk.files[log.segments[-1].path])()
        log._left_behind = True
        await shards.move([1], B)
        assert stray not in disk.files
        assert await append(shards.logs[B], 1, 1, number=3) == 3
        assert await read_numbers(shards.logs[B], 1) == [0, 1, 2, 3]

    in_world(life)


# For those who answer over rings, and who send again after a crash


def test_the_hook_is_called_before_each_journal_write_and_each_run() -> None:
    async def life(shards: Shards) -> None:
        logs, disk = shards.logs[A], shards.world.disk
        submitted: list[str] = []
        before = disk.write

        def write(file, position, buffers, **more):  # type: ignore[no-untyped-def]
            if file.path.endswith((".log", ".journal")) and position:
                submitted.append("write")
            return before(file, position, buffers, **more)

        disk.write = write  # type: ignore[method-assign]
        logs.resources.hooks.before_submit = lambda: submitted.append("hook")
        await append(logs, 1, 3)
        await append(logs, 1, 1, size=20_000)
        await logs.flush_partitions(list(logs.partitions))
        assert len(submitted) >= 4
        pairs = [tuple(submitted[place : place + 2]) for place in range(0, len(submitted), 2)]
        assert set(pairs) == {("hook", "write")}
        logs.resources.hooks.before_submit = lambda: None
        del disk.write

    in_world(life)


def test_recovery_tells_what_was_hinted_and_where_it_ended() -> None:
    world = World(LockingDisk(1))

    async def first() -> None:
        shards = await world.start()
        logs = shards.logs[A]
        await append(logs, 1, 5)
        await logs.flush_partitions([logs.partition(1)])
        await append(logs, 1, 4)  # carries the hint
        await append(logs, 2, 2)
        shards.abandon()

    async def check(shards: Shards) -> None:
        ends = [(log.answered_offset, log.recovered_end) for log in shards.logs[A].partitions]
        assert ends == [(5, 9), (0, 2)]

    asyncio.run(first())
    after_crash(world, check)


@pytest.mark.parametrize("flushed", [False, True])
def test_a_stored_batch_is_found_by_its_bytes_once_for_each_that_was_stored(flushed: bool) -> None:
    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        log = logs.partition(1)
        twice, other = make_batch([b"1 twice", b"2 twice"]), make_batch([b"1 twice", b"2 other"])
        for batch in (twice, other, twice):
            outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            log.append(bytearray(batch), 2, outcome.set_result)
            await outcome
        if flushed:
            await logs.flush_partitions([log])
            while log.tail.evict_oldest(log.flushed_end):
                pass

        async def found(batch: bytearray, first: int, last: int, *taken: int, count: int = 2) -> int | None:
            return await log.reader.find_batch(batch, count, first, last, set(taken))

        assert await found(twice, 0, 6) == 0
        assert await found(twice, 0, 6, 0) == 4
        assert await found(twice, 0, 6, 0, 4) is None
        assert await found(twice, 1, 6) == 4  # the one at 0 is below
        assert await found(twice, 0, 4, 0) is None
        assert await found(other, 0, 6) == 2
        assert await found(other, 0, 100) == 2 and await found(other, 3, 100) is None
        assert await found(twice, 0, 6, count=1) is None
        assert await found(make_batch([b"1 twice"]), 0, 6, count=1) is None

    in_world(life)


def test_on_a_real_disk_the_locks_are_free_for_the_new_owner(tmp_path) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        disk = ThreadDisk(4)
        world = World(disk, directory=str(tmp_path))  # type: ignore[arg-type]
        shards = await world.start()
        for number in range(12):
            await append(shards.logs[A], 1, 1, number=number, size=9000)
        await stored(shards.logs[A], 7, 5)
        await asyncio.wait_for(shards.move([1], B, give_up="adopt"), 20)
        await asyncio.wait_for(shards.move([1, 2], B), 20)
        await append(shards.logs[B], 1, 1, number=12)
        await asyncio.wait_for(shards.move([1], A), 20)
        assert await read_numbers(shards.logs[A], 1) == list(range(13))
        await shards.close()
        again = await world.start()
        assert await read_numbers(again.logs[A], 1) == list(range(13)) and offsets_of(again.logs[A], 7) == [5]
        await again.close()
        await disk.shut_down()

    asyncio.run(run())


def test_a_release_waits_for_index_files_that_are_being_written() -> None:
    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        await append(logs, 1)
        written = asyncio.Event()
        saving = asyncio.ensure_future(written.wait())
        logs.partition(1).index_saves.add(saving)  # type: ignore[arg-type]
        releasing = asyncio.ensure_future(logs.moves.release_partition(1))
        for _ in range(500):
            await asyncio.sleep(0)
        assert not releasing.done()
        written.set()
        await releasing
        await logs.moves.resume_partition(1)

    in_world(life)


def test_a_file_that_is_being_opened_for_a_reader_is_not_kept_by_a_segment_that_is_closed() -> None:
    async def life(shards: Shards) -> None:
        logs = shards.logs[A]
        for number in range(12):
            await append(logs, 1, 1, number=number, size=9000)
        await logs.flush_partitions([logs.partition(1)])
        files, segment = logs.resources.files, logs.partition(1).segments[0]
        logs.resources.disk.close(segment.file)
        segment.file = None
        files._sealed.pop(segment, None)
        opening = asyncio.ensure_future(files.get(segment))
        await asyncio.sleep(0)
        await files.close(segment)
        with pytest.raises(StorageError, match="closed"):
            await opening
        assert segment.file is None and segment not in files._sealed

    in_world(life)


def test_a_hint_of_an_attempt_that_was_given_up_is_not_journaled_behind_the_next_one() -> None:
    world = World(LockingDisk(1))

    async def first() -> None:
        shards = await world.start()
        source, destination = shards.logs[A], shards.logs[B]
        await append(source, 1, 5)
        former = await destination.moves.adopt_partition(world.identity(1, 2), await source.moves.release_partition(1))
        destination.forget_partition(1)
        await source.moves.resume_partition(1)
        await append(source, 1, 5, number=5)
        await shards.move([1], B)
        destination._checkpoint.append(former)  # as a checkpoint that was begun before
        await destination._publish()
        shards.abandon()

    async def check(shards: Shards) -> None:
        assert shards.logs[B].partition(1).answered_offset == 10

    asyncio.run(first())
    after_crash(world, check)
