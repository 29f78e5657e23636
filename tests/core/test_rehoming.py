"""Starts with other numbers of shards and other rules: everything is there, whatever dies on the way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from shardserver.core.orphans import Orphans
from shardserver.errors import StorageError
from tests.core.shard_world import World, until
from tests.core.simulated_loop import simulate
from tests.fault_disk import FaultDisk

PARTITIONS = 7
RESERVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Rule:
    stream: str
    topic: str
    shards: tuple[int, ...]


async def written_world(*, seed: int = 1, reserve_bytes: int = 0) -> World:
    """Three shards, some messages and offsets in each partition, some of them in segments only."""
    world = World(3, seed=seed, reserve_bytes=reserve_bytes)
    await world.start()
    await world.create_stream()
    await world.create_topic(partitions=PARTITIONS)
    for number in range(PARTITIONS):
        for place in range(3):
            size = 9000 if number % 2 else 0
            await world.send(1000 * number + 2 * place, partition=number, via=number % 3, size=size)
        await world.store_offset(number % 4, partition=number)
    return world


async def check_all(world: World, shards: int) -> None:
    await world.check()
    assert world.ledger.count == 6 * PARTITIONS
    for number in range(PARTITIONS):
        assert await world.get_offset(partition=number) == number % 4
        assert world.partition(number=number).shard < shards
    directories = await world.disk.list_directory("data/shards")
    assert directories == [str(number) for number in range(min(shards, len(directories)))]


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("end", ["stop", "kill", "power loss"])
def test_another_number_of_shards_finds_everything(shards: int, end: str) -> None:
    async def play() -> None:
        world = await written_world()
        disk = await world.stop() if end == "stop" else world.end()
        if end == "power loss":
            disk = disk.after_power_loss(7)
        for count in (shards, 3, shards):
            after = World(count, disk=disk, seed=90)
            after.ledger = world.ledger
            await after.start()
            await check_all(after, count)
            disk = await after.stop()

    simulate(play())


def test_other_rules_move_partitions_of_shards_that_live() -> None:
    async def play() -> None:
        world = await written_world()
        disk = world.end()
        for shards in ((2,), (0, 1), (1,)):
            after = World(3, disk=disk, rules=[Rule("s", "t*", shards)], seed=90)
            after.ledger = world.ledger
            await after.start()
            await check_all(after, 3)
            assert {after.partition(number=number).shard for number in range(PARTITIONS)} == set(shards)
            disk = await after.stop()

    simulate(play())


@pytest.mark.parametrize("left", ["kill", "power loss"])
@pytest.mark.parametrize("shards", [1, 2])
def test_deaths_at_any_disk_operation_of_a_start_with_fewer_shards_lose_nothing(shards: int, left: str) -> None:
    """All die at the n-th operation of shard 0, and again in the next start, until one gets through."""

    async def one_start(disk: FaultDisk, world: World, die_at: int, seed: int) -> tuple[FaultDisk, bool]:
        after = World(shards, disk=disk, seed=seed)
        after.ledger = world.ledger
        begun = [after.begin(number) for number in range(shards)]
        begun[0].disk.die_at = die_at
        await after.wait_recovered(begun[0])
        begun[0].disk.die_at, survived = 0, not begun[0].is_dead
        if survived:
            await check_all(after, shards)
        disk = after.end()
        return (disk.after_power_loss(seed) if left == "power loss" else disk), survived

    async def play(number: int) -> bool:
        world = await written_world(seed=number)
        disk, at_once = await one_start(world.end(), world, number, 100 + number)
        again = 0
        while again >= 0:
            again += 1
            disk, survived = await one_start(disk, world, number << again, 200 + number + again)
            again = -1 if survived else again
        await one_start(disk, world, 0, 300 + number)
        return at_once

    number = 1
    while not simulate(play(number)):
        number += 1 + number // 3
    assert number > 50


def test_a_full_disk_refuses_a_start_with_fewer_shards_and_loses_nothing() -> None:
    async def play() -> None:
        world = await written_world()
        disk = world.end()
        disk.capacity_bytes = disk._used() + 3 * 4096
        full = World(1, disk=disk, seed=90)
        with pytest.raises(StorageError, match="could not be moved to other shards: no room"):
            await full.start()
        full.end()
        again = World(3, disk=disk, seed=95)
        again.ledger = world.ledger
        disk.capacity_bytes = None
        await again.start()
        await check_all(again, 3)
        disk = again.end()
        after = World(1, disk=disk, seed=99)
        after.ledger = world.ledger
        await after.start()
        await check_all(after, 1)
        await after.stop()

    simulate(play())


def test_a_shard_that_dies_at_any_disk_operation_of_the_start_is_waited_for() -> None:
    async def play(at: int) -> bool:
        world = await written_world(seed=at)
        after = World(2, disk=world.end(), seed=90)
        after.ledger = world.ledger
        first, dying = after.begin(0), after.begin(1)
        dying.disk.die_at = at
        await until(lambda: dying.is_dead or first.has_recovered)
        died, dying.disk.die_at = dying.is_dead, 0
        if died:
            await after.start(1)
        await after.wait_recovered(first)
        await check_all(after, 2)
        after.end()
        return died

    at = 1
    while simulate(play(at)):
        at += 2
    assert at > 30


def test_a_removal_that_a_crash_has_interrupted_is_finished_reserve_file_included(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remove = Orphans.remove

    async def play(part: int) -> bool:
        world = await written_world(reserve_bytes=RESERVE_BYTES)
        for process in world.live.values():
            await process.reserve.make()
        disk = world.end()
        assert {"data/reserve", "data/reserve.1", "data/reserve.2"} < set(disk.files)
        after = World(1, disk=disk, seed=90, reserve_bytes=RESERVE_BYTES)
        first = after.begin(0)

        async def die_within(orphans: Orphans, shard: int) -> None:
            first.disk.die_at = first.disk.operations + part
            await remove(orphans, shard)

        monkeypatch.setattr(Orphans, "remove", die_within)
        await until(lambda: first.is_dead or first.has_recovered)
        died = first.is_dead
        monkeypatch.undo()
        disk = after.end().after_power_loss(part)
        last = World(1, disk=disk, seed=95, reserve_bytes=RESERVE_BYTES)
        last.ledger = world.ledger
        await last.start()
        await check_all(last, 1)
        assert not [path for path in disk.files if path.startswith(("data/shards/1", "data/shards/2", "data/reserve."))]
        await last.stop()
        return died

    part = 1
    while simulate(play(part)):
        part += 1
    assert part > 15


def test_dead_files_of_a_shard_that_is_gone_are_removed_by_shard_0() -> None:
    async def play() -> None:
        world = await written_world()
        for process in list(world.live.values())[1:]:
            process.owned._remove = never  # type: ignore[method-assign]
        await world.delete_topic(via=0)
        await asyncio.sleep(1)
        assert {1, 2} <= set(world[0].metadata.dying.values())
        disk = world.end()
        after = World(1, disk=disk, seed=90)
        await after.start()
        await after.wait_settled()
        assert not [path for path in disk.files if path.startswith("data/partitions")]
        await after.stop()

    simulate(play())


async def never(uids: list[int]) -> None:
    await asyncio.Event().wait()
