"""The shard's arena under its log: what lives there, what goes first when it is full, and that all of it comes back."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from shardserver.errors import ArenaFullError, NotOwnerError, ShardServerError
from shardserver.memory.arena import Arena
from shardserver.memory.heap import heap_arena
from shardserver.storage import tail_room
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.segment_reader import read_buffer
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch, payloads_of
from tests.fault_disk import FaultDisk
from tests.storage.log_world import abandon, ticking_clock

KIB = 1024
SETTINGS = LogSettings(
    journal_file_bytes=1024 * KIB,
    journal_files=4,
    max_write_bytes=256 * KIB,
    direct_bytes=128 * KIB,
    tail_bytes=1 << 30,
    read_bytes=8 * KIB,
    read_ahead_bytes=32 * KIB,
    linger_s=0.01,
    retry_s=0.001,
)


async def open_log(disk: FaultDisk, memory: Arena, **changes: Any) -> ShardLog:
    identity = PartitionIdentity(1, 1, 0, durability=changes.pop("durability", Durability.FSYNC))
    source = RecoveryInput(0, 2, [identity], memory=memory)
    settings = replace(SETTINGS, **changes)
    return await recover_shard(disk, "data", settings, source, ticking_clock(), lambda error: None)


async def send(logs: ShardLog, payload: bytes, uid: int = 1) -> int:
    """As the handler does it. Raises what refused the batch."""
    outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(result: int | ShardServerError) -> None:
        if isinstance(result, int):
            outcome.set_result(result)
        else:
            outcome.set_exception(result)

    logs.partition(uid).append(logs.copy_batch(make_batch([payload])), 1, done)
    return await outcome


def numbered(number: int, size: int) -> bytes:
    return f"{number} ".encode() + bytes(size)


async def read_all(logs: ShardLog) -> list[int]:
    log, found = logs.partition(1), []
    while len(found) < log.high_watermark:
        result = await log.reader.read(len(found), 100, 1 << 20)
        found += [int(payload.split(b" ")[0]) for payload in payloads_of(b"".join(result.buffers))]
    return found


def test_a_poll_at_the_tail_gives_views_of_the_arena() -> None:
    async def run() -> None:
        memory = heap_arena(1 << 20)
        logs = await open_log(FaultDisk(1), memory)
        await send(logs, b"0 first")
        result = logs.partition(1).reader.try_read(0, 10, 1 << 20)
        assert result is not None
        (view,) = result.buffers
        assert memory.position_of(view) >= 4096 and payloads_of(bytes(view)) == [b"0 first"]
        assert logs.statistics().memory.blocks == 1
        await logs.close()

    asyncio.run(run())


def test_much_that_may_go_from_memory_goes_in_several_turns_of_the_loop() -> None:
    count, at_once = 10_000, 4096

    async def run() -> None:
        memory = heap_arena(16 << 20)
        changes = {"journal_file_bytes": 4 << 20, "direct_bytes": 64 << 20, "tail_bytes": 0}
        logs = await open_log(FaultDisk(1), memory, **changes)
        await asyncio.gather(*(send(logs, b"%d " % number) for number in range(count)))
        assert logs.statistics().memory.blocks == count
        await logs.flush_partitions([logs.partition(1)])
        left = [logs.statistics().memory.blocks]
        while left[-1] and len(left) < 10:
            await asyncio.sleep(0)
            left.append(logs.statistics().memory.blocks)
        assert left[:3] == [count - at_once, count - 2 * at_once, 0]
        await logs.close()

    asyncio.run(run())


def test_what_recovery_replays_lies_in_the_arena() -> None:
    async def run() -> None:
        disk, memory = FaultDisk(1), heap_arena(1 << 20)
        logs = await open_log(disk, heap_arena(1 << 20))
        await send(logs, b"0 first")
        abandon(logs)
        logs = await open_log(disk, memory)
        (entry,) = logs.partition(1).tail.from_offset(0)
        assert memory.position_of(entry.data) >= 4096
        assert await read_all(logs) == [0]
        await logs.close()

    asyncio.run(run())


def test_recovery_into_an_arena_that_is_too_small_refuses_nothing() -> None:
    async def run() -> None:
        disk = FaultDisk(1)
        logs = await open_log(disk, heap_arena(1 << 20))
        for number in range(8):
            await send(logs, numbered(number, 2000))
        abandon(logs)
        logs = await open_log(disk, heap_arena(4096))
        assert await read_all(logs) == list(range(8))
        await logs.close()

    asyncio.run(run())


def test_a_full_arena_drops_what_disk_has_too_before_it_refuses() -> None:
    """Ten times its size passes through it; nothing is refused but for the moment of a flush, and nothing is lost."""

    async def run() -> int:
        logs = await open_log(FaultDisk(1), heap_arena(256 * KIB))
        refused = number = 0
        while number < 640:
            try:
                await send(logs, numbered(number, 3700))
            except ArenaFullError:
                refused += 1
                await logs.wait_idle()  # its flush
            else:
                number += 1
        assert await read_all(logs) == list(range(640))
        await logs.close()
        return refused

    assert 0 < asyncio.run(run()) < 40


def test_a_full_arena_of_what_no_segment_has_refuses_and_keeps_it_all() -> None:
    async def run() -> None:
        memory = heap_arena(64 * KIB)
        logs = await open_log(FaultDisk(1), memory)
        held = [memory.allocate(4096) for _ in range(10)]
        waiting = [asyncio.ensure_future(send(logs, numbered(number, 3000))) for number in range(20)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        taken = [number for number, one in enumerate(results) if not isinstance(one, ArenaFullError)]
        assert [results[number] for number in taken] == [0, 1, 2, 3, 4, 5]
        held.clear()
        assert await send(logs, numbered(6, 3000)) == 6
        assert await read_all(logs) == [*taken, 6]
        await logs.close()

    asyncio.run(run())


def test_parked_walks_are_given_up_for_an_append() -> None:
    async def run() -> None:
        memory = heap_arena(256 * KIB)
        logs = await open_log(FaultDisk(1), memory, tail_bytes=0)
        for number in range(40):
            await send(logs, numbered(number, 3700))
        await logs._flush_pinned()
        await logs.partition(1).reader.read(0, 3, 1 << 20)
        assert len(logs.resources.walks) == 1 and memory.used_bytes > 0
        held = [memory.allocate(256) for _ in range((memory.bytes - memory.used_bytes) // 256)]
        assert await send(logs, numbered(40, 20)) == 40
        assert len(logs.resources.walks) == 0
        del held
        await logs.close()

    asyncio.run(run())


def test_a_slow_consumers_view_survives_the_eviction_of_its_batch() -> None:
    async def run() -> None:
        logs = await open_log(FaultDisk(1), heap_arena(256 * KIB))
        await send(logs, numbered(7, 3700))
        result = logs.partition(1).reader.try_read(0, 1, 1 << 20)
        assert result is not None
        before = bytes(result.buffers[0])
        await logs._flush_pinned()
        for number in range(200):
            try:
                await send(logs, numbered(number, 3700))
            except ArenaFullError:
                await logs.wait_idle()
        assert logs.partition(1).tail.first_offset != 0
        assert bytes(result.buffers[0]) == before
        await logs.close()

    asyncio.run(run())


def test_reads_behind_the_tail_leave_a_quarter_of_the_arena_to_appends() -> None:
    memory = heap_arena(64 * KIB)
    views = [read_buffer(memory, 16 * KIB) for _ in range(5)]
    assert [memory.position_of(view) >= 0 for view in views] == [True, True, True, False, False]
    assert all(len(view) == 16 * KIB for view in views)
    assert memory.used_bytes == 48 * KIB
    del views
    assert memory.used_bytes == 0


def test_a_poll_behind_the_tail_reads_into_the_arena() -> None:
    async def run() -> None:
        memory = heap_arena(1 << 20)
        logs = await open_log(FaultDisk(1), memory, tail_bytes=0)
        await send(logs, numbered(0, 3000))
        await logs._flush_pinned()
        result = await logs.partition(1).reader.read(0, 1, 1 << 20)
        assert memory.position_of(result.buffers[0]) >= 4096
        await logs.close()

    asyncio.run(run())


@pytest.mark.parametrize("durability", list(Durability))
def test_all_blocks_come_back_when_a_partition_is_deleted(durability: Durability) -> None:
    memory = heap_arena(1 << 20)

    async def run() -> None:
        logs = await open_log(FaultDisk(1), memory, durability=durability)
        for number in range(50):
            await send(logs, numbered(number, 100 * number))
        assert await read_all(logs) == list(range(50))
        partition = logs.partition(1)
        logs.forget_partition(1)
        await logs.wait_idle()
        assert memory.statistics().blocks == 0 and memory.statistics().largest_free_bytes == 1 << 20
        assert logs.statistics().tail_bytes == 0
        with pytest.raises(NotOwnerError, match="deleted"):
            await partition.reader.read(0, 1, 1 << 20)
        await logs.close()

    asyncio.run(run())


@pytest.mark.parametrize("partitions", [1, 6])
def test_the_memory_of_deleted_partitions_comes_back_in_parts(partitions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once it stopped the loop for as long as hundreds of thousands of batches take."""
    monkeypatch.setattr(tail_room, "LET_GO_AT_ONCE", 8)
    memory = heap_arena(1 << 20)

    async def run() -> None:
        logs = await open_log(FaultDisk(1), memory)
        for uid in range(2, partitions + 1):
            logs.create_partition(PartitionIdentity(uid, 1, uid))
        for number in range(20 * partitions):
            await send(logs, numbered(number, 100), 1 + number % partitions)
        for uid in range(1, partitions + 1):  # of one topic
            logs.forget_partition(uid)
        left = [memory.statistics().blocks]
        while left[-1]:
            await asyncio.sleep(0)
            left.append(memory.statistics().blocks)
        parts = [before - after for before, after in itertools.pairwise(left)]
        assert sum(parts) >= 20 * partitions and max(parts) == 8
        await logs.close()

    asyncio.run(run())


@pytest.mark.parametrize("durability", list(Durability))
def test_the_tails_budget_holds_for_every_durability(durability: Durability) -> None:
    """Those of `memory` topics were once not counted."""

    async def run() -> None:
        logs = await open_log(FaultDisk(1), heap_arena(8 << 20), durability=durability, tail_bytes=50_000)
        for number in range(200):
            await send(logs, numbered(number, 3000))
        await logs.flush_partitions(list(logs.partitions))
        assert 0 < logs.statistics().tail_bytes == logs.partition(1).tail.bytes <= 50_000
        assert logs._turn.cached == 1
        await logs.close()

    asyncio.run(run())


def test_only_a_tail_that_has_something_to_drop_is_looked_at_for_room() -> None:
    """Of 10,000 partitions with nothing in segments yet each was looked at after every journal write."""

    async def run() -> None:
        logs = await open_log(FaultDisk(1), heap_arena(8 << 20), tail_bytes=1000)
        for number in range(3):
            await send(logs, numbered(number, 500))
        assert logs.statistics().tail_bytes > 1000 and logs._turn.cached == 0
        await logs.partition(1).flush()
        assert logs._turn.cached == 1
        await send(logs, numbered(3, 500))
        assert logs.statistics().tail_bytes < 1000 and logs._turn.cached == 0  # what is left is in no segment
        assert await read_all(logs) == [0, 1, 2, 3]
        await logs.close()

    asyncio.run(run())
