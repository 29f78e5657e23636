"""A partition that moves there and back, with every operation of the disk as a crash or failure point."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from shardserver.errors import StorageError
from shardserver.storage.settings import Durability
from tests.storage.move_world import LockingDisk, MoveLoad, Shards, World, check_recovered
from tests.storage.scenarios import until_dead

MOVES = ("", "", "adopt", "", "release", "", "")


def made_world(seed: int, durability: Durability = Durability.FSYNC) -> World:
    """Both shards were started and stopped once, so that a life begins with its load."""
    world = World(LockingDisk(seed), durability)

    async def create() -> None:
        await (await world.start()).close()

    asyncio.run(create())
    world.crash(seed, power_loss=False)
    return world


async def life(shards: Shards, load: MoveLoad, seed: int) -> None:
    """Requests all the time; between them partition 1, or both, move to the other shard or nearly do."""
    chance = random.Random(seed)
    for give_up in MOVES:
        for _ in range(chance.randrange(1, 4)):
            await answered(shards, load.some(shards))
        waiting = load.some(shards)
        uids = [1, 2] if shards.owner(1) is shards.owner(2) and chance.random() < 0.3 else [1]
        target = 1 - shards.world.owners[1].shard
        moving = asyncio.ensure_future(shards.move(uids, target, give_up=give_up))
        while not moving.done():
            await asyncio.sleep(0)
            if shards.world.disk.is_dead:
                moving.add_done_callback(lambda one: one.cancelled() or one.exception())
                moving.cancel()
                return
            if chance.random() < 0.1:
                waiting += load.some(shards)
        if moving.exception() is not None and not isinstance(moving.exception(), StorageError):
            raise moving.exception()
        await answered(shards, waiting)


async def answered(shards: Shards, waiting: list[asyncio.Future]) -> None:
    while not all(one.done() for one in waiting):
        if shards.world.disk.is_dead or any(one.failed is not None for one in shards.logs.values()):
            return
        await asyncio.sleep(0)


def play(world: World, load: MoveLoad, seed: int) -> None:
    async def live() -> None:
        shards = await until_dead(world.disk, world.start())
        if shards is not None:
            task = asyncio.ensure_future(life(shards, load, seed))
            while not task.done() and not world.disk.is_dead:
                if any(one.failed is not None for one in shards.logs.values()):
                    break
                await asyncio.sleep(0)
            if task.done() and not task.cancelled():
                task.result()
            task.cancel()
            shards.abandon()

    asyncio.run(live())


def check_remains(world: World, load: MoveLoad, seed: int, *, power_loss: bool) -> None:
    world.crash(seed, power_loss=power_loss)
    first = asyncio.run(check_recovered(world, load))
    world.crash(seed + 1, power_loss=True)
    assert asyncio.run(check_recovered(world, load)) == first
    world.crash(seed + 2, power_loss=True)

    async def go_on() -> None:
        shards = await world.start()
        await shards.move([1], 1 - world.owners[1].shard)
        await answered(shards, [*load.some(shards), load.append(shards, 1)])
        load.check(await shards.numbers(), shards.offsets())
        await shards.close()

    asyncio.run(go_on())
    asyncio.run(check_recovered(world, load))


@pytest.mark.parametrize(
    "durability, power_loss",
    [(Durability.FSYNC, True), (Durability.FSYNC, False), (Durability.WRITE, False)],
    ids=["fsync, power loss", "fsync, kill", "write, kill"],
)
def test_what_was_acknowledged_survives_a_crash_at_any_operation_of_a_move(
    durability: Durability, power_loss: bool
) -> None:
    number = 1
    while True:
        world = made_world(number, durability)
        world.disk._die_at = number
        load = MoveLoad(number, world)
        play(world, load, 5)
        if not world.disk.is_dead:
            break
        check_remains(world, load, number, power_loss=power_loss)
        number += 9
    assert number > 200


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_was_acknowledged_survives_a_failure_of_any_operation_of_a_move(code: int) -> None:
    number = 1
    while True:
        world = made_world(number)
        world.disk._fail_at, world.disk._fail_errno = number, code
        load = MoveLoad(number, world)
        play(world, load, 5)
        if not world.disk.has_failed:
            break
        check_remains(world, load, number, power_loss=number % 2 == 0)
        number += 11
    assert number > 200


@pytest.mark.parametrize("seed", range(12))
def test_lives_with_moves_drawn_at_random(seed: int) -> None:
    world = made_world(seed)
    world.disk._die_at = random.Random(seed).randrange(20, 700)
    load = MoveLoad(seed, world)
    play(world, load, seed)
    check_remains(world, load, seed, power_loss=seed % 2 == 0)
