"""Every replica has a change when its client is answered, whoever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from shardserver.core import metadata_events as ev
from shardserver.core.calls import Operation
from shardserver.core.peer_service import PeerService
from shardserver.errors import CorruptionError, StorageError
from shardserver.protocol.table import Command
from shardserver.router.peer import Request
from shardserver.storage.metadata_log import MetadataLog
from tests.core.shard_world import World, turns, until
from tests.core.simulated_loop import simulate


def when_asked(service: PeerService, operation: Operation) -> asyncio.Event:
    """Is set when the next control request of this kind has come."""
    asked, serve = asyncio.Event(), service.control[operation]

    def note(request: Request) -> bytes | Awaitable[bytes]:
        asked.set()
        return serve(request)

    service.control[operation] = note
    return asked


def test_a_change_is_in_every_replica_when_it_is_answered() -> None:
    async def play() -> None:
        world = World(3)
        await world.start()

        def same() -> bool:
            return all(one.metadata == world[0].metadata for one in world.live.values())

        for via in range(3):
            name = f"t{via}"
            if via == 0:
                await world.create_stream(via=1)
            await world.create_topic(name, 4, via=via)
            assert same() and all(name in one.metadata.streams[0].topic_ids for one in world.live.values())
            await world.change_partitions(Command.CREATE_PARTITIONS, 2, name, via=via)
            assert same() and len(world[2].metadata.find_topic("s", name)[1].partitions) == 6
            await world.change_partitions(Command.DELETE_PARTITIONS, 3, name, via=via)
            assert same() and len(world[1].metadata.find_topic("s", name)[1].partitions) == 3
            await world.purge_topic(name, via=via)
            assert same()
            await world.send(10 * via, topic=name, via=via)
        await world.delete_topic("t1", via=2)
        assert same() and all("t1" not in one.metadata.streams[0].topic_ids for one in world.live.values())
        await world.check()
        assert world.ledger.count == 6
        await world.stop()

    simulate(play())


async def change_much(world: World, via: int) -> None:
    """Each kind of change once; a client of shard `via`."""
    name = f"of{via}"
    await world.create_topic(name, 3, via=via)
    await world.send(100 * via, topic=name, partition=1, via=via)
    await world.change_partitions(Command.CREATE_PARTITIONS, 2, name, via=via)
    await world.purge_topic(name, via=via)
    await world.change_partitions(Command.DELETE_PARTITIONS, 1, name, via=via)
    await world.send(100 * via + 10, topic=name, partition=2, via=via)
    await world.create_topic(f"{name}-gone", 2, via=via)
    await world.delete_topic(f"{name}-gone", via=via)


@pytest.mark.parametrize("joiner", [1, 0], ids=["a follower", "shard 0"])
def test_who_joins_amid_changes_at_any_moment_misses_none(joiner: int) -> None:
    async def play(moment: int) -> bool:
        world = World(3, seed=moment)
        await world.start()
        await world.create_stream()
        changes = asyncio.gather(change_much(world, 0), change_much(world, 2))
        await turns(moment)
        is_over = changes.done()
        await world.restart(joiner)
        await changes
        await world.check()
        world.end()
        return is_over

    moment = joiner
    while not simulate(play(moment)):
        moment += 7 + moment // 20


def test_a_change_is_everywhere_or_nowhere_when_shard_0_dies_at_any_disk_operation() -> None:
    async def play(number: int) -> bool:
        world = World(3, seed=number)
        await world.start()
        await world.create_stream()
        disk = world[0].disk
        disk.die_at = disk.operations + number
        answers = [
            asyncio.ensure_future(world.create_topic("a", 3, via=1)),
            asyncio.ensure_future(world.create_topic("b", 3, via=0)),
        ]
        await until(lambda: disk.is_dead or all(one.done() for one in answers))
        died = disk.is_dead
        if died:
            await turns(number % 7)
            await world.start(0)
        first = await asyncio.gather(*answers)
        again = [await world.create_topic("a", 3, via=1, request=2), await world.create_topic("b", 3, request=3)]
        assert again == first
        await world.check()
        assert len(world[0].metadata.streams[0].topics) == 2
        world.end()
        return died

    number = 1
    while simulate(play(number)):
        number += 1
    assert number > 3


def test_a_change_is_answered_though_a_follower_dies_at_any_moment_of_it() -> None:
    async def play(moment: int) -> bool:
        world = World(3, seed=moment)
        await world.start()
        await world.create_stream()
        change = asyncio.ensure_future(world.create_topic("a", 3, via=2))
        await turns(moment)
        was_done = change.done()
        world.kill(1)
        await change
        assert world[2].metadata == world[0].metadata
        await world.start(1)
        await world.check()
        world.end()
        return was_done

    moment = 0
    while not simulate(play(moment)):
        moment += 1


def test_the_next_process_of_a_follower_joins_though_the_join_of_the_former_was_still_under_way() -> None:
    async def play() -> None:
        world = World(2)
        await world.start()
        await world.create_stream()
        assert world[0].side is not None
        order = world[0].side.writer.order
        world.kill(1)
        world.begin(1)
        await until(order.locked)  # its boot number is being written
        async with order:  # and before it gets its snapshot there is a change that takes long
            world.kill(1)
            joined = when_asked(world[0].service, Operation.JOIN)
            world.begin(1)
            await until(joined.is_set)
        await world.wait_recovered(world[1])
        await world.create_topic("a", 1)
        await world.check()
        world.end()

    simulate(play())


def test_shard_0_takes_no_change_before_those_who_serve_have_joined_again() -> None:
    async def play() -> None:
        world = World(3)
        await world.start()
        await world.create_stream()
        world.kill(0)
        joins = world[2].role.follower  # type: ignore[union-attr]
        begun, joins.writer_began = [], lambda: begun.append(joins)  # it is slow
        await world.start(0)
        change = asyncio.ensure_future(world.create_topic("a", 1, via=1))
        await asyncio.sleep(10)
        assert begun and not change.done() and not world[1].metadata.streams[0].topics
        del joins.writer_began
        joins.writer_began()
        await change
        await world.check()
        await world.stop()

    simulate(play())


def test_shard_0_waits_no_longer_for_one_who_dies_instead_of_joining() -> None:
    async def play() -> None:
        world = World(3)
        await world.start()
        await world.create_stream()
        world.kill(0)
        world[2].role.follower.writer_began = lambda: None  # type: ignore[method-assign,union-attr]
        await world.start(0)
        change = asyncio.ensure_future(world.create_topic("a", 1, via=1))
        await asyncio.sleep(1)
        assert not change.done()
        world.kill(2)
        await change
        await world.start(2)
        await world.check()
        await world.stop()

    simulate(play())


def test_boot_numbers_are_unique_over_all_starts() -> None:
    async def play() -> None:
        world = World(3)
        await world.start()
        numbers = [one.boot_number for one in world.live.values()]
        for number in (1, 0, 2, 0, 1, 1):
            await world.restart(number)
            numbers.append(world[number].boot_number)
        disk = world.end()
        after = World(3, disk=disk)
        await after.start()
        numbers += [one.boot_number for one in after.live.values()]
        assert len(set(numbers)) == len(numbers) and 0 not in numbers
        await after.stop()

    simulate(play())


def test_followers_start_while_shard_0_is_read_only() -> None:
    async def play() -> None:
        world = World(3)
        await world.start()
        await world.create_stream()
        await world.create_topic(partitions=3)
        for number in range(3):
            await world.send(10 * number, partition=number, via=1)
        await world.restart(0, read_only=True)
        await world.restart(1)
        await world.restart(2)
        assert len({one.boot_number for one in world.live.values()}) == 3
        with pytest.raises(StorageError):
            await world.create_topic("refused", via=1)
        on_1 = next(number for number in range(3) if world.partition("t", number).shard == 1)
        await world.send(50, partition=on_1, via=2)
        await world.restart(0)
        await world.create_topic("taken", via=1)
        await world.check()
        assert world.ledger.count == 8
        world.end()

    simulate(play())


def fail_to_apply(world: World, number: int) -> None:
    def fail(events: object) -> None:
        raise ValueError("a bug amid a change")

    world[number].role.on_applied = fail


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_whose_logs_do_not_follow_its_replica_ends_and_the_change_is_everywhere(number: int) -> None:
    async def play() -> None:
        world = World(3)
        await world.start()
        await world.create_stream()
        fail_to_apply(world, number)
        broken = world[number]
        change = asyncio.ensure_future(world.create_topic("a", 3, via=2))
        await until(lambda: broken.is_dead)
        assert isinstance(broken.ended_by, ValueError)
        await world.start(number)
        await change
        assert "a" in world[1].metadata.streams[0].topic_ids
        await world.check()
        await world.stop()

    simulate(play())


def test_a_follower_whose_logs_do_not_follow_a_snapshot_ends() -> None:
    async def play() -> None:
        world = World(3)
        await world.start()
        await world.create_stream()
        fail_to_apply(world, 1)
        broken = world[1]
        await world.restart(0)
        await until(lambda: broken.is_dead)
        assert isinstance(broken.ended_by, ValueError)
        await world.start(1)
        await world.create_topic("a", 3, via=2)
        await world.check()
        await world.stop()

    simulate(play())


@pytest.mark.parametrize(
    "payload", [b"\xc1", ev.encode_change(ev.Change([ev.StreamDeleted(5)]))], ids=["bytes", "event"]
)
def test_a_metadata_record_that_means_nothing_refuses_the_start_with_its_place(payload: bytes) -> None:
    async def play() -> None:
        world = World(1)
        await world.start()
        await world.create_stream()
        disk = await world.stop()
        log = MetadataLog(disk, "data/metadata")
        _, records = await log.replay()
        await log.append(payload)
        with pytest.raises(CorruptionError) as refused:
            await World(1, disk=disk).start()
        assert refused.value.path == "data/metadata/metadata.1"
        assert refused.value.position == 4096 * (1 + len(records))

    simulate(play())
