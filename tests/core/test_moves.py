"""Moves while clients send, and every death in between: each acknowledged batch once, in order, by one owner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shardserver.core.mover import MoveOutcome
from shardserver.core.placement import Move
from shardserver.errors import CorruptionError, StorageError
from tests.core.shard_world import World, turns, until
from tests.core.simulated_loop import simulate


def move_to(world: World, target: int, *numbers: int, topic: str = "t") -> list[Move]:
    """Of these partitions of a topic, or of all, those that are elsewhere."""
    stream, found = world[0].metadata.find_topic("s", topic)
    chosen = [found.partitions[number] for number in numbers] if numbers else found.partitions
    return [Move(stream.id, found.id, one.id, one.uid, one.shard, target) for one in chosen if one.shard != target]


async def move(world: World, target: int, *numbers: int) -> MoveOutcome:
    assert world[0].side is not None
    return await world[0].side.mover.move(move_to(world, target, *numbers))


async def made_world(partitions: int = 1, shards: int = 3, seed: int = 1) -> World:
    """With a topic whose partitions are all on shard 1, and something in each of them."""
    world = World(shards, seed=seed)
    await world.start()
    await world.create_stream()
    await world.create_topic(partitions=partitions)
    await move(world, 1)
    for number in range(partitions):
        await world.send(1_000_000 + 10 * number, partition=number, via=0)
        await world.store_offset(1, partition=number)
    return world


class Senders:
    """Some connections that send one batch after the other until they are told to end."""

    def __init__(self, world: World, partitions: int = 1, *, vias: tuple[int, ...] = (0, 1, 2)) -> None:
        self._world, self._partitions, self._ends = world, partitions, False
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(via, 10_000 * (place + 1))) for place, via in enumerate(vias)]

    async def _run(self, via: int, number: int) -> None:
        while not self._ends:
            if via in self._world.live:
                size = (0, 100, 9000)[number // 2 % 3]
                await self._world.send(number, partition=number % self._partitions, via=via, size=size)
            await asyncio.sleep(0.003)
            number += 2 if self._partitions == 1 else 3

    async def end(self) -> None:
        self._ends = True
        await asyncio.gather(*self._tasks)


def test_a_partition_goes_to_and_fro_under_sends() -> None:
    async def play() -> None:
        world = await made_world()
        senders = Senders(world)
        for target in (2, 1, 0, 1, 2):
            await turns(200)
            assert (await move(world, target)).errors == {}
            assert world.partition(via=2).shard == target
            before = world.ledger.count
            await until(lambda before=before: world.ledger.count > before + 4)
        await senders.end()
        await world.check()
        assert await world.get_offset() == 1
        disk = await world.stop()
        after = World(3, disk=disk)
        after.ledger = world.ledger
        await after.start()
        await after.check()
        assert await after.get_offset() == 1 and after.partition().term == 7
        await after.stop()

    simulate(play())


def test_an_offset_that_was_set_back_after_a_move_stays_so_after_each_further_move_and_restart() -> None:
    async def play() -> None:
        world = await made_world(shards=2)
        for number in range(5):
            await world.send(10 * number, via=0)
        for offset, target in ((9, 0), (3, 1), (7, 0), (2, 1)):
            await world.store_offset(offset)
            await move(world, target)
            assert await world.get_offset() == offset
            await world.restart(target)
            assert await world.get_offset() == offset
        await world.check()
        await world.stop()

    simulate(play())


Fate = Callable[[World], Awaitable[None]]


async def source_dies(world: World) -> None:
    await world.restart(1)


async def destination_dies(world: World) -> None:
    await world.restart(2)


async def shard_0_dies(world: World) -> None:
    await world.restart(0)


async def all_die(world: World) -> None:
    for number in range(3):
        world.kill(number)
    await world.start()


async def topic_is_purged(world: World) -> None:
    world.ledger.forget(world.partition().uid, world.partition(number=1).uid)
    await world.purge_topic(via=0)


async def topic_is_deleted(world: World) -> None:
    await world.delete_topic(via=0)


FATES = [source_dies, destination_dies, shard_0_dies, all_die, topic_is_purged, topic_is_deleted]


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.__name__)
@pytest.mark.parametrize("sends", [False, True], ids=["quiet", "sends"])
def test_what_happens_at_any_moment_of_a_move_loses_and_doubles_nothing(fate: Fate, sends: bool) -> None:
    """Moments are turns of the loop; a move takes some hundred."""

    async def play(moment: int) -> bool:
        world = await made_world(2, seed=moment)
        senders = Senders(world, 2, vias=(0, 1, 2)) if sends else None
        await turns(40 if sends else 0)
        moving = asyncio.ensure_future(move(world, 2))
        await turns(moment)
        was_over = moving.done()
        await fate(world)
        if senders is not None:
            await senders.end()
        await until(lambda: moving.done() or fate in (shard_0_dies, all_die))
        await world.check()
        if fate is not topic_is_deleted:
            await world.send(7, via=0)
            await world.send(9, partition=1, via=2)
            assert (await move(world, 0)).errors == {}
            await world.check()
        disk = world.end()
        after = World(3, disk=disk.after_power_loss(moment))
        after.ledger = world.ledger
        await after.start()
        await after.check()
        after.end()
        moving.cancel()
        return was_over

    moment = 0
    while not simulate(play(moment)):
        moment += 5 if sends else 3


def test_a_batch_of_moves_takes_those_that_can_go() -> None:
    async def play() -> None:
        world = await made_world(5)
        world[1].logs.partition(world.partition(number=2).uid).fence(StorageError("it is fenced"))
        outcome = await move(world, 2)
        assert outcome.moved == 4 and list(outcome.errors.values()) == ["it is fenced"]
        assert [world.partition(number=number).shard for number in range(5)] == [2, 2, 1, 2, 2]
        await world.restart(1)
        await world.check()
        await world.stop()

    simulate(play())


class Gate:
    """Holds the Mover of shard 0 before one of its steps."""

    def __init__(self, world: World, step: str) -> None:
        assert world[0].side is not None
        self.reached, self._may_go = asyncio.Event(), asyncio.Event()
        mover, former = world[0].side.mover, getattr(world[0].side.mover, step)

        async def held(*arguments: object) -> object:
            self.reached.set()
            await self._may_go.wait()
            return await former(*arguments)

        setattr(mover, step, held)

    def open(self) -> None:
        self._may_go.set()


@pytest.mark.parametrize("shard", [1, 2], ids=["source", "destination"])
@pytest.mark.parametrize("comes_back", [True, False], ids=["restarted", "down"])
def test_the_event_of_a_move_is_refused_when_a_shard_has_died_since(shard: int, comes_back: bool) -> None:
    async def play() -> None:
        world = await made_world()
        gate = Gate(world, "_write_event")
        moving = asyncio.ensure_future(move(world, 2))
        await gate.reached.wait()
        world.kill(shard)
        if comes_back:  # the source waits for the lock on its files, which the destination has open
            world.begin(shard)
            await turns(100)
        gate.open()
        outcome = await moving
        if comes_back:
            await world.wait_recovered(world[shard])
            assert outcome.moved == 0 and "died" in str(outcome.errors) and world.partition().shard == 1
        else:
            await world.start(shard)
        await world.check()
        await world.send(7, via=0)
        await world.check()
        await world.stop()

    simulate(play())


def test_a_topic_deleted_while_its_partition_arrives_holds_up_no_later_move() -> None:
    async def play() -> None:
        world = await made_world()
        await world.create_topic("other", 3)
        journal_adoptions = world[2].logs.journal_adoptions

        async def held(adoptions: list) -> None:  # type: ignore[type-arg]
            await world.delete_topic(via=0)
            await journal_adoptions(adoptions)

        world[2].logs.journal_adoptions = held  # type: ignore[method-assign]
        outcome = await move(world, 2)
        assert outcome.moved == 0 and len(outcome.errors) == 1
        del world[2].logs.journal_adoptions
        assert world[0].side is not None
        await world[0].side.mover.move(move_to(world, 2, topic="other"))
        assert world.partition("other").shard == 2
        await world.check()
        await world.stop()

    simulate(play())


def test_a_metadata_log_that_fails_during_a_move_ends_shard_0_and_the_source_serves_no_more_until_then() -> None:
    async def play() -> None:
        world = await made_world()
        former = world[0]
        former.disk.failing_path = "metadata"
        moving = asyncio.ensure_future(move(world, 2))
        await until(lambda: former.is_dead)
        assert isinstance(former.ended_by, StorageError)
        uid = world.partition(via=1).uid
        await asyncio.sleep(5)
        assert world[1].logs.partition(uid).refusal is not None
        await world.start(0)
        await world.send(5, via=1)
        await world.check()
        await world.stop()
        moving.cancel()

    simulate(play())


def test_a_move_on_a_full_metadata_log_is_given_up_and_the_source_serves_on() -> None:
    async def play() -> None:
        world = await made_world()
        world[0].disk.failing_path, world[0].disk.fail_errno = "metadata", 28
        gate = Gate(world, "_give_up")
        moving = asyncio.ensure_future(move(world, 2))
        await gate.reached.wait()
        world[0].disk.failing_path = ""
        gate.open()
        outcome = await moving
        assert outcome.moved == 0 and len(outcome.errors) == 1 and not world[0].is_dead
        await world.send(5, via=2)
        await world.check()
        await world.stop()

    simulate(play())


def test_a_partition_that_cannot_be_opened_again_is_tried_again_and_holds_up_no_other() -> None:
    async def play() -> None:
        world = await made_world(4)
        uids = [world.partition(number=number).uid for number in range(4)]
        for number in range(4):
            await world.send(100 + 10 * number, partition=number, via=0, size=9000)
        await world[1].owned.release(uids)
        world[1].disk.failing_path = f"{uids[1]:016x}"
        with pytest.raises(StorageError):
            await world[1].owned.resume(uids)
        serving = [world[1].logs.partition(uid).refusal is None for uid in uids]
        assert serving == [True, False, True, True]
        world[1].disk.failing_path = ""
        await until(lambda: world[1].logs.partition(uids[1]).refusal is None)
        await world.check()
        await world.stop()

    simulate(play())


def test_a_partition_that_moves_here_without_having_been_adopted_ends_the_process() -> None:
    async def play() -> None:
        world = await made_world()
        side = world[0].side
        assert side is not None
        adopted = world[2].owned.adopt

        async def forget(arrivals: list) -> None:  # type: ignore[type-arg]
            await adopted(arrivals)
            await world[2].owned.abandon([one.uid for one in arrivals])

        world[2].owned.adopt = forget  # type: ignore[method-assign]
        ended = world[2]
        await move(world, 2)
        await until(lambda: ended.is_dead)
        assert isinstance(ended.ended_by, CorruptionError)
        await world.start(2)
        await world.check()
        await world.stop()

    simulate(play())
