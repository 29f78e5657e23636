"""Small batches of a partition share blocks of the arena: what they take, what a flush copies, and when it is free."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.errors import ArenaFullError, ShardServerError
from shardserver.memory.arena import Arena
from shardserver.memory.heap import heap_arena
from shardserver.memory.huge_memory import HugeMemory
from shardserver.memory.shared import make_memory
from shardserver.storage import shard_log
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch, payloads_of
from tests.fault_disk import FaultDisk
from tests.memory.test_huge_memory import needs_huge_pages, wait_for
from tests.storage.log_world import abandon, ticking_clock

LEAST_SHARED = 1024
OVERHEAD = 256 + 48  # of a batch with one message
SETTINGS = LogSettings(journal_file_bytes=4 << 20, journal_files=3, linger_s=0.01)


class World:
    """One partition and its arena."""

    def __init__(self, logs: ShardLog, memory: Arena) -> None:
        self.logs, self.memory, self.log = logs, memory, logs.partition(1)
        self.payloads: list[bytes] = []
        self.answers: list[int | ShardServerError] = []

    def send(self, size: int, fill: bytes = b"x") -> None:
        """One message, so that its batch has `size` bytes."""
        payload = fill * (size - OVERHEAD)
        self.log.send_bytes(self.memory, make_batch([payload]), 1, self.answers.append)
        self.payloads.append(payload)

    async def answered(self) -> None:
        while len(self.answers) < len(self.payloads):
            await asyncio.sleep(0)
        assert self.answers == list(range(len(self.payloads)))

    async def read(self) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < len(self.payloads):
            result = await self.log.reader.read(len(found), 10_000, 1 << 30)
            found += payloads_of(b"".join(result.buffers))
        return found

    def evict_all(self) -> None:
        while not self.logs._turn.evict_to(0):
            pass


def play(
    work: Callable[[World], Awaitable[None]], memory: Arena | None = None, durability: Durability = Durability.FSYNC
) -> None:
    async def run() -> None:
        arena = memory or heap_arena(64 << 20)
        source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0, durability=durability)], memory=arena)
        logs = await recover_shard(FaultDisk(1), "data", SETTINGS, source, ticking_clock(), lambda error: None)
        await work(World(logs, arena))
        abandon(logs)

    asyncio.run(run())


def test_they_are_read_from_memory_and_from_segments_as_they_were_sent() -> None:
    async def work(world: World) -> None:
        for number in range(400):
            world.send(320 + number * 37 % 1500, bytes([number % 256]))
        await world.answered()
        assert await world.read() == world.payloads
        await world.logs.flush_partitions([world.log])
        world.evict_all()
        assert len(world.log.tail) == 0
        assert await world.read() == world.payloads

    play(work)


def test_a_tail_of_many_has_few_blocks_and_all_of_them_are_free_in_the_end() -> None:
    async def work(world: World) -> None:
        before = world.memory.statistics()
        for _ in range(2000):
            world.send(404)
        await world.answered()
        assert world.memory.statistics().blocks - before.blocks < 2000 / 20
        await world.logs.flush_partitions([world.log])
        world.evict_all()
        assert world.memory.statistics() == before

    play(work)


@needs_huge_pages
def test_they_come_to_lie_on_huge_pages_only_while_there_are_many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_log, "MANY_PARTITIONS", 1)
    descriptor = make_memory("huge", 34 << 20)  # all but the last two are one free block, used from its start on
    huge = HugeMemory(descriptor)
    huge.start()

    async def send_for_a_while(world: World) -> None:
        for _ in range(10_000):
            world.send(404)
        await world.answered()

    async def work(world: World) -> None:
        await send_for_a_while(world)
        world.logs.create_partition(PartitionIdentity(2, 1, 1))
        world.logs.forget_partition(2)
        await send_for_a_while(world)
        assert huge.huge_bytes == 0
        world.logs.create_partition(PartitionIdentity(2, 1, 1))
        await send_for_a_while(world)
        assert wait_for(lambda: huge.huge_bytes > 0)

    try:
        play(work, Arena(huge))
    finally:
        huge.stop()
        os.close(descriptor)


def test_what_is_left_of_a_tail_goes_with_it() -> None:
    async def work(world: World) -> None:
        before = world.memory.used_bytes
        for _ in range(100):
            world.send(404)
        old = world.log.replace_tail()
        assert world.memory.used_bytes > before
        while old.evict_oldest(1 << 62):
            pass
        assert world.memory.used_bytes == before

    play(work, durability=Durability.MEMORY)


@given(st.lists(st.integers(320, 30_000), min_size=1, max_size=60), st.integers(1, 12))
def test_they_take_little_more_than_their_bytes(sizes: list[int], repeated: int) -> None:
    async def work(world: World) -> None:
        for size in sizes * repeated:
            world.send(size)
            assert world.memory.used_bytes <= world.log.tail.bytes * 1.7 + LEAST_SHARED

    play(work, durability=Durability.MEMORY)


def test_without_room_nothing_has_happened() -> None:
    async def work(world: World) -> None:
        for _ in range(60):
            world.send(404)
        held = []
        while size := world.memory.statistics().largest_free_bytes:
            held.append(world.memory.allocate(size))
        sent = len(world.payloads)
        with pytest.raises(ArenaFullError):
            for _ in range(100):
                world.send(404)  # some still find room in the last block
        assert world.log.next_offset == len(world.answers) == len(world.payloads) > sent
        held.clear()
        world.send(404)
        await world.answered()
        assert await world.read() == world.payloads

    play(work, heap_arena(1 << 20), Durability.MEMORY)


def test_where_a_shared_block_has_no_room_a_batch_may_have_some_of_its_own() -> None:
    async def work(world: World) -> None:
        for _ in range(1000):
            world.send(404)
        held = []
        while (size := world.memory.statistics().largest_free_bytes) > 1024:
            held.append(world.memory.allocate(size // 2))
        before = len(world.payloads)
        with pytest.raises(ArenaFullError):
            while True:
                world.send(404)
        assert len(world.payloads) - before > 3
        assert world.answers == list(range(len(world.payloads)))

    play(work, heap_arena(1 << 20), Durability.MEMORY)
