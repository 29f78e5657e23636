"""What a shard's logs do about a change: only what it touches, and dead files until they are gone."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from shardserver.core import owned_partitions
from shardserver.core.owned_partitions import RETRY_LIMIT_S
from shardserver.errors import BackpressureError
from tests.core.shard_world import World, until
from tests.core.simulated_loop import simulate


async def made_world(topics: int = 3) -> World:
    world = World(3)
    await world.start()
    await world.create_stream()
    for number in range(topics):
        await world.create_topic(f"t{number}", 3)
        for partition in range(3):
            await world.send(100 * number + 10 * partition, topic=f"t{number}", partition=partition, size=9000)
    return world


def partition_files(world: World) -> list[str]:
    return [path for path in world.disk.files if path.startswith("data/partitions")]


def test_only_topics_that_a_change_touches_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[tuple[int, str]] = []
    match = owned_partitions.OwnedPartitions._match

    def noted(self, logs, stream, topic, partition) -> None:  # type: ignore[no-untyped-def]
        looked_at.append((self._shard, topic.name))
        match(self, logs, stream, topic, partition)

    async def play() -> None:
        world = await made_world()
        monkeypatch.setattr(owned_partitions.OwnedPartitions, "_match", noted)
        await world.purge_topic("t1")
        assert sorted(set(looked_at)) == [(0, "t1"), (1, "t1"), (2, "t1")]
        looked_at.clear()
        await world.delete_topic("t0")
        await world.create_stream("other")
        await world.wait_settled()
        assert looked_at == []
        await world.stop()

    simulate(play())


def test_dead_files_are_removed_by_their_owner_and_then_forgotten_by_all() -> None:
    async def play() -> None:
        world = await made_world()
        for process in world.live.values():
            await process.logs.flush_partitions(list(process.logs.partitions))
        assert len({path.split("/")[2] for path in partition_files(world)}) == 9
        unlinks: dict[int, int] = {}
        for number, process in world.live.items():
            unlink = process.disk.unlink
            process.disk.unlink = lambda path, n=number, u=unlink: unlinks.update({n: unlinks.get(n, 0) + 1}) or u(path)  # type: ignore[method-assign,misc]
        await world.delete_topic("t0")
        await world.purge_topic("t1")
        await world.wait_settled()
        assert set(unlinks) == {0, 1, 2} and len({path.split("/")[2] for path in partition_files(world)}) == 3
        await world.check()
        await world.stop()

    simulate(play())


@pytest.mark.parametrize("number", [0, 1])
def test_a_report_that_fails_is_made_again_by_itself_at_a_bounded_rate(number: int) -> None:
    async def play() -> None:
        world = await made_world()
        owned, times = world[number].owned, []
        report = owned._report_removed

        async def refused(uids: list[int]) -> None:
            times.append(asyncio.get_running_loop().time())
            raise BackpressureError("shard 0 is down")

        owned._report_removed = refused
        await world.delete_topic("t0")
        await asyncio.sleep(120)
        pauses = [round(after - before) for before, after in pairwise(times)]
        assert pauses[:6] == [1, 2, 4, 8, 16, 30] and RETRY_LIMIT_S == 30
        owned._report_removed = report
        await until(lambda: not world[number].metadata.dying)
        await world.stop()

    simulate(play())


def test_a_stop_leaves_dead_files_to_the_next_start() -> None:
    async def play() -> None:
        world = await made_world(1)
        owned = world[1].owned

        async def never(uids: list[int]) -> None:
            await asyncio.Event().wait()

        owned._report_removed = never
        await world.delete_topic("t0")
        await asyncio.sleep(3)
        assert owned._removing is not None
        owned.stop()
        await until(lambda: owned._removing is None)
        assert set(world[0].metadata.dying.values()) == {1}
        await world.restart(1)
        await world.wait_settled()
        assert partition_files(world) == []
        await world.stop()

    simulate(play())


def test_files_of_a_topic_deleted_while_its_owner_was_dead_are_removed_at_its_next_start() -> None:
    async def play() -> None:
        world = await made_world(1)
        world.kill(1)
        await world.delete_topic("t0")
        await asyncio.sleep(3)
        assert set(world[0].metadata.dying.values()) == {1}
        await world.start(1)
        await world.wait_settled()
        assert partition_files(world) == []
        await world.stop()

    simulate(play())


def test_a_read_only_shard_removes_no_files() -> None:
    async def play() -> None:
        world = await made_world(1)
        await world[1].logs.flush_partitions(list(world[1].logs.partitions))
        await world.restart(1, read_only=True)
        before = set(partition_files(world))
        await world.delete_topic("t0")
        await asyncio.sleep(100)
        assert set(partition_files(world)) == {path for path in before if path in world.disk.files} != set()
        assert set(world[0].metadata.dying.values()) == {1}
        await world.restart(1)
        await world.wait_settled()
        assert partition_files(world) == []
        world.end()

    simulate(play())
