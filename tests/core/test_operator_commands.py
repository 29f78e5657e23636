"""What an operator is answered, and what the commands do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.shard_world import World, turns
from tests.core.simulated_loop import simulate


async def made_world(partitions: int = 6) -> World:
    world = World(3)
    await world.start()
    await world.create_stream()
    await world.create_topic(partitions=partitions)
    for number in range(partitions):
        await world.send(10 * number, partition=number)
    return world


async def command(world: World, name: str, **arguments: Any) -> dict[str, Any]:
    assert world[0].side is not None
    outcome = world[0].side.commands[name](arguments)
    return outcome if isinstance(outcome, dict) else await outcome


def places(world: World) -> list[int]:
    return [one.shard for one in world[0].metadata.find_topic("s", "t")[1].partitions]


def test_placement_shows_each_partition_with_its_shard() -> None:
    async def play() -> None:
        world = await made_world()
        shown = await command(world, "placement")
        assert shown["shards"] == 3
        assert [row["shard"] for row in shown["partitions"]] == places(world) == [0, 1, 2, 0, 1, 2]
        assert shown["partitions"][4].items() >= {"stream": "s", "topic": "t", "partition": 4, "term": 1}.items()
        await world.stop()

    simulate(play())


def test_a_partition_is_moved_by_names_or_ids_and_once_only() -> None:
    async def play() -> None:
        world = await made_world()
        asked = {"stream": "s", "topic": "t", "partition": 1, "to_shard": 2}
        assert await command(world, "move-partition", **asked) == {"moved": 1, "from_shard": 1, "to_shard": 2}
        assert await command(world, "move-partition", **asked) == {"moved": 0, "from_shard": 2, "to_shard": 2}
        asked |= {"stream": "0", "topic": "0", "to_shard": 0}
        assert await command(world, "move-partition", **asked) == {"moved": 1, "from_shard": 2, "to_shard": 0}
        assert places(world)[1] == 0
        await world.check()
        await world.stop()

    simulate(play())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"stream": "nobody"}, "no such topic: 'nobody'"),
        ({"topic": "7"}, "no such topic: 7"),
        ({"partition": 6}, "s/t has 6 partitions, no number 6"),
        ({"partition": -1}, "s/t has 6 partitions, no number -1"),
        ({"to_shard": 3}, "there are 3 shards, no number 3"),
        ({"to_shard": -1}, "there are 3 shards, no number -1"),
    ],
)
def test_a_move_that_names_what_is_not_there_is_explained(wrong: dict[str, Any], sentence: str) -> None:
    async def play() -> None:
        world = await made_world()
        asked = {"stream": "s", "topic": "t", "partition": 1, "to_shard": 2} | wrong
        assert await command(world, "move-partition", **asked) == {"error": sentence}
        assert places(world) == [0, 1, 2, 0, 1, 2]
        await world.stop()

    simulate(play())


def test_a_move_to_a_shard_that_is_down_says_so_and_the_partition_stays() -> None:
    async def play() -> None:
        world = await made_world()
        world.kill(2)
        asked = {"stream": "s", "topic": "t", "partition": 1, "to_shard": 2}
        answer = await command(world, "move-partition", **asked)
        assert answer["moved"] == 0 and answer["not_moved"] == 1 and answer["error"] == "shard 2 is down"
        await world.send(500, partition=1)
        await world.start(2)
        await world.check()
        await world.stop()

    simulate(play())


def test_rebalance_by_count_evens_out_and_a_dry_run_only_tells() -> None:
    async def play() -> None:
        world = await made_world()
        for number in (1, 2, 4):
            await command(world, "move-partition", stream="s", topic="t", partition=number, to_shard=0)
        before = places(world)
        told = await command(world, "rebalance", by="count", dry_run=True)
        assert told["moved"] == 0 and len(told["moves"]) == 3 and places(world) == before
        done = await command(world, "rebalance", by="count", dry_run=False)
        assert done == {"moved": 3, "moves": told["moves"]}
        assert sorted(places(world)) == [0, 0, 1, 1, 2, 2]
        await world.check()
        await world.stop()

    simulate(play())


def test_rebalance_by_load_spreads_what_is_asked_most() -> None:
    async def play() -> None:
        world = await made_world()
        await command(world, "move-partition", stream="s", topic="t", partition=1, to_shard=0)
        for place in range(30):
            for number in (0, 1, 3):  # all of them on shard 0
                await world.send(1000 + 100 * number + 2 * place, partition=number, via=1)
        done = await command(world, "rebalance", by="load")
        assert done["moved"] == len(done["moves"]) >= 2
        assert len({places(world)[number] for number in (0, 1, 3)}) == 3
        await world.check()
        await world.stop()

    simulate(play())


def test_rebalance_by_load_needs_all_shards() -> None:
    async def play() -> None:
        world = await made_world()
        world.kill(1)
        await turns(5)
        answer = await command(world, "rebalance", by="load")
        assert answer == {"error": "shard 1 is down or recovers"}
        await world.start(1)
        await world.stop()

    simulate(play())
