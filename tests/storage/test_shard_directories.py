"""Fewer shards than before: the logs of those that are gone are recovered anywhere, emptied, and removed."""

from __future__ import annotations

import asyncio

import pytest

from shardserver.storage.shard_directories import orphan_shards, remove_shard_directory, remove_the_rest
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults
from tests.storage.log_world import append, read_numbers
from tests.storage.move_world import LockingDisk, Owner, Shards, World
from tests.storage.scenarios import until_dead

UIDS = (1, 2, 3, 4)


def world_of_three(seed: int) -> World:
    """Partitions on shards 0, 1, 2, 2, then a crash."""
    owners = {uid: Owner(min(uid - 1, 2), 1) for uid in UIDS}
    world = World(LockingDisk(seed), uids=UIDS, owners=owners)

    async def live() -> None:
        shards = await world.start((0, 1, 2))
        for uid in UIDS:
            await append(shards.owner(uid), uid, uid * 3)
            commit: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            shards.owner(uid).offsets.store(shards.owner(uid).partition(uid), 1, 7, uid, commit.set_result)
            await commit
        shards.abandon()

    asyncio.run(live())
    world.crash(seed, power_loss=True)
    return world


async def go_on_with_one(world: World) -> Shards:
    """The start of one shard: the directories of others are emptied into it and removed."""
    await remove_the_rest(world.disk, SyncFaults(), "data")
    shards = await world.start((0,))
    for shard in await orphan_shards(world.disk, "data", 1):
        shards.logs[shard] = await world.open(shard)
        mine = [one.uid for one in shards.logs[shard].partitions]
        if mine:
            await shards.move(mine, 0)
        await shards.logs[shard].close()
        await remove_shard_directory(world.disk, SyncFaults(), "data", shard)
    return shards


async def check(logs: ShardLog) -> None:
    for uid in UIDS:
        assert await read_numbers(logs, uid) == list(range(uid * 3))
        assert logs.offsets.get(uid, 1, 7) == uid


@pytest.mark.parametrize("power_loss", [True, False], ids=["power_loss", "kill"])
def test_shards_that_are_gone_are_emptied_and_removed_with_a_crash_at_any_operation(power_loss: bool) -> None:
    number = 1
    while True:
        world = world_of_three(number)
        world.disk._die_at = number

        async def live(world: World = world) -> None:
            shards = await until_dead(world.disk, go_on_with_one(world))
            if shards is not None:
                await until_dead(world.disk, check(shards.logs[0]))
                shards.abandon()

        asyncio.run(live())
        if not world.disk.is_dead:
            break
        world.crash(number, power_loss=power_loss)

        async def again(world: World = world) -> None:
            shards = await go_on_with_one(world)
            await check(shards.logs[0])
            assert await world.disk.list_directory("data/shards") == ["0"]
            await shards.logs[0].close()

        asyncio.run(again())
        number += 7
    assert number > 100


def test_the_directories_of_shards_that_run_are_no_orphans() -> None:
    world = world_of_three(1)

    async def look() -> list[list[int]]:
        return [await orphan_shards(world.disk, "data", shards) for shards in (1, 2, 3, 4)]

    assert asyncio.run(look()) == [[1, 2], [2], [], []]


def test_a_directory_that_is_not_there_is_removed_already() -> None:
    asyncio.run(remove_shard_directory(LockingDisk(1), SyncFaults(), "data", 5))
