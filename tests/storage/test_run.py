"""What a run is made of: large batches from where they lie, the others gathered, zeros up to each block boundary."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.memory.heap import heap_arena
from shardserver.storage import gather, gather_python, tail, tail_python
from shardserver.storage import run as runs
from shardserver.storage.index import INDEX_INTERVAL_BYTES
from shardserver.storage.run import StagingPool
from shardserver.storage.tail_python import TailEntry
from tests.fault_disk import FaultDisk
from tests.storage.log_world import SETTINGS, abandon, append, open_logs, read_numbers

BLOCK = 4096
WHOLE = 64 * 1024
SIZES = st.one_of(st.integers(1, 9000), st.integers(WHOLE - 1, WHOLE + 9000))
POOL = StagingPool()  # one for all examples: what an earlier run left in it may show up nowhere


def tail_of(module: Any, datas: list[Any]) -> Any:
    tail = module.Tail(module.TailTotal())
    for number, data in enumerate(datas):
        tail.append(TailEntry(number, 1, 1000 + number, data))
    return tail


FORMS = pytest.mark.parametrize(
    "tails, gather", [(tail, gather), (tail_python, gather_python)], ids=["compiled", "plain"]
)


@FORMS
@given(
    drawn=st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=12),
    start=st.integers(0, 11),
    limit=st.integers(1, 12),
    most_bytes=st.integers(0, 200_000),
    mark_from=st.integers(0, 100_000),
)
def test_a_run_holds_its_batches_in_order_and_zeros_between(
    tails: Any, gather: Any, drawn: list[tuple[int, bool]], start: int, limit: int, most_bytes: int, mark_from: int
) -> None:
    arena = heap_arena(4 << 20)
    batches = [bytes([number + 1]) * size for number, (size, _) in enumerate(drawn)]
    datas = [
        arena.copy(batch) if in_arena else bytearray(batch) for batch, (_, in_arena) in zip(batches, drawn, strict=True)
    ]
    run = gather.build_run(tail_of(tails, datas), start, limit, most_bytes, POOL, WHOLE, mark_from)
    expected, position, taken, marks, end = bytearray(), 0, 0, [], start
    for number in range(start, min(limit, len(drawn))):
        batch, data, in_arena = batches[number], datas[number], drawn[number][1]
        if taken and taken + len(batch) > most_bytes:
            break
        taken, end = taken + len(batch), number + 1
        is_whole = in_arena and len(batch) >= WHOLE
        position = -(-position // BLOCK) * BLOCK if is_whole else position
        assert not is_whole or arena.position_of(data) % BLOCK == 0
        if position >= mark_from:
            marks.append((number, position, 1000 + number))
            mark_from = position + INDEX_INTERVAL_BYTES
        expected += bytes(position - len(expected)) + batch
        position = -(-len(expected) // BLOCK) * BLOCK if is_whole else len(expected)
    expected += bytes(-len(expected) % BLOCK)
    assert b"".join(run.buffers) == expected and (run.size_bytes, run.end_offset) == (len(expected), end)
    assert run.marks == marks
    assert all(len(one) % BLOCK == 0 for one in run.buffers)
    run.give_back(POOL)


@FORMS
def test_a_large_batch_is_not_copied_and_its_block_lives_as_long_as_the_run(tails: Any, gather: Any) -> None:
    arena = heap_arena(1 << 20)
    block = arena.copy(b"x" * (WHOLE + 1))
    position = block.position
    run = gather.build_run(tail_of(tails, [block]), 0, 1, 0, POOL, WHOLE, 0)
    assert arena.position_of(run.buffers[0]) == position
    del block
    assert arena.used_bytes > 0
    del run
    assert arena.used_bytes == 0


def test_staging_that_was_given_back_is_used_again_and_kept_within_its_bound() -> None:
    pool = StagingPool()
    first = pool.take(100_000)
    assert len(first) == 128 * 1024
    pool.give_back(first)
    assert pool.take(70_000) is first and pool.kept_bytes == 0
    for one in [pool.take(8 << 20) for _ in range(3)]:
        pool.give_back(one)
    assert pool.kept_bytes == runs.KEPT_STAGING_BYTES


def test_large_batches_of_the_arena_are_read_back_after_a_power_loss() -> None:
    disk = FaultDisk(3)

    async def live() -> None:
        logs = await open_logs(disk)
        for number in range(40):
            await append(logs, 1, number=number, size=(20_000, 10, 70_000, 3700)[number % 4])
        abandon(logs)

    async def recover() -> None:
        logs = await open_logs(disk.after_power_loss(4))
        assert await read_numbers(logs, 1) == list(range(40))
        await append(logs, 1, number=40)
        await logs.close()

    assert SETTINGS.whole_bytes < 20_000
    asyncio.run(live())
    asyncio.run(recover())


def test_the_pool_keeps_the_sizes_that_are_asked_for_and_never_more_than_its_limit() -> None:
    pool = StagingPool()
    unused = [pool.take(runs.LEAST_STAGING_BYTES) for _ in range(runs.KEPT_STAGING_BYTES // runs.LEAST_STAGING_BYTES)]
    large = pool.take(4 << 20)
    for staging in unused:
        pool.give_back(staging)
    pool.give_back(large)
    assert pool.kept_bytes == runs.KEPT_STAGING_BYTES
    assert pool.take(3 << 20) is large
    small = pool.take(1)
    assert any(small is staging for staging in unused)
    assert pool.kept_bytes == runs.KEPT_STAGING_BYTES - (4 << 20) - runs.LEAST_STAGING_BYTES
