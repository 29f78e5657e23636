"""Members come and go: generations, numbers, and partitions that wait for a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shardserver.core import metadata_events as ev
from shardserver.core.groups.coordinator import Claim
from shardserver.core.groups.fences import Fences
from shardserver.errors import Code, RejectedError
from tests.core.groups.model import TIMEOUT_S, Model


def run(work: Callable[[Model], Coroutine[Any, Any, None]]) -> None:
    async def lived() -> None:
        await work(Model(1))

    asyncio.run(lived())


async def until(model: Model, condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never")


def partitions(model: Model, member: int) -> list[int]:
    found = model.coordinator.sync(model.key, member)
    assert found is not None
    return found[1]


def generation(model: Model, member: int) -> int:
    found = model.coordinator.sync(model.key, member)
    assert found is not None
    return found[0]


async def join_and_read(model: Model) -> None:
    """Session 1 has all partitions, and messages of each in hand, up to offset 9."""
    await model.coordinator.join(model.key, 1, 0)
    for partition in model.topic.partitions:
        fences = model.fences[partition.shard]
        assert fences is not None
        fences.note_delivered(partition.uid, 0, 1, 9)


def test_the_first_gets_all_and_who_joins_twice_changes_nothing() -> None:
    async def work(model: Model) -> None:
        await model.coordinator.join(model.key, 1, 0)
        assert partitions(model, 1) == [0, 1, 2]
        before = generation(model, 1)
        await model.coordinator.join(model.key, 1, 0)
        assert generation(model, 1) == before
        await model.coordinator.join(model.key, 2, 0)
        assert generation(model, 1) == before + 1
        assert sorted(partitions(model, 1) + partitions(model, 2)) == [0, 1, 2]

    run(work)


def test_who_leaves_is_no_member_and_the_lowest_number_is_given_again() -> None:
    async def work(model: Model) -> None:
        for member in 1, 2, 3:
            await model.coordinator.join(model.key, member, 0)
        await model.coordinator.leave(model.key, 2)
        assert model.coordinator.sync(model.key, 2) is None
        with pytest.raises(RejectedError) as caught:
            await model.coordinator.leave(model.key, 2)
        assert caught.value.code is Code.GROUP_MEMBER_NOT_FOUND
        await model.coordinator.join(model.key, 4, 0)
        assert [number for number, _ in model.coordinator.members(model.key)] == [0, 1, 2]

    run(work)


@pytest.mark.parametrize("ends", ["commit", "time", "leave"])
def test_a_partition_with_messages_in_hand_waits_for_their_commit(ends: str) -> None:
    async def work(model: Model) -> None:
        await join_and_read(model)
        await model.coordinator.join(model.key, 2, 0)
        assert partitions(model, 2) == [] and len(partitions(model, 1)) == 2
        before = generation(model, 2)
        if ends == "commit":
            model.committed = {partition.uid: 9 for partition in model.topic.partitions}
        elif ends == "time":
            model.now += TIMEOUT_S
        else:
            await model.coordinator.leave(model.key, 1)
        await until(model, lambda: partitions(model, 2) != [])
        assert generation(model, 2) > before  # so that who gets it looks

    run(work)


@pytest.mark.parametrize("ends", ["death", "purge"])
def test_a_wait_that_ends_with_its_fence_makes_a_generation(ends: str) -> None:
    """What the former member had in hand goes to the next one, too: not in the generation in which it got it."""

    async def work(model: Model) -> None:
        await join_and_read(model)
        await model.coordinator.join(model.key, 2, 0)
        assert partitions(model, 2) == []
        before = generation(model, 2)
        if ends == "death":
            for shard in {partition.shard for partition in model.topic.partitions}:
                model.fences[shard] = Fences()
                model.coordinator.shard_began(shard)
        else:
            first = model.metadata.next_uid
            ev.apply(model.metadata, ev.TopicPurged(0, 0, [first, first + 1, first + 2]))
            model.coordinator.metadata_changed()
        await until(model, lambda: len(partitions(model, 1) + partitions(model, 2)) == 3)
        assert partitions(model, 2) != [] and generation(model, 2) > before

    run(work)


def test_a_partition_that_its_owner_keeps_after_all_is_its_again() -> None:
    async def work(model: Model) -> None:
        await join_and_read(model)
        await model.coordinator.join(model.key, 2, 0)
        await model.coordinator.leave(model.key, 2)
        await until(model, lambda: partitions(model, 1) == [0, 1, 2])

    run(work)


def test_a_partition_that_moves_while_it_is_granted_is_granted_where_it_is() -> None:
    async def work(model: Model) -> None:
        asked, may_answer = asyncio.Event(), asyncio.Event()
        change_fence = model.change_fence

        async def slowly(shard: int, change: Any) -> list[bool]:
            gone = await change_fence(shard, change)
            asked.set()
            await may_answer.wait()
            return gone

        model.coordinator._fence = slowly
        joining = asyncio.ensure_future(model.coordinator.join(model.key, 1, 0))
        await asked.wait()
        one = model.topic.partitions[0]
        move = ev.PartitionMove(0, 0, one.id, one.uid, (one.shard + 1) % 3, 2)
        ev.apply(model.metadata, ev.PartitionsMoved([move]))
        model.coordinator.metadata_changed()
        may_answer.set()
        await joining
        await until(model, model.is_settled)

    run(work)


def test_a_group_that_is_deleted_has_no_members() -> None:
    async def work(model: Model) -> None:
        await model.coordinator.join(model.key, 1, 0)
        ev.apply(model.metadata, ev.GroupDeleted(0, 0, 0))
        model.coordinator.metadata_changed()
        assert model.coordinator.sync(model.key, 1) is None
        with pytest.raises(RejectedError) as caught:
            await model.coordinator.join(model.key, 1, 0)
        assert caught.value.code is Code.GROUP_NOT_FOUND

    run(work)


def claims_of(model: Model, members: dict[int, int]) -> dict[int, list[Claim]]:
    """By shard. members: session -> shard. Each says what its last sync told."""
    found: dict[int, list[Claim]] = {0: [], 1: [], 2: []}
    for member, shard in members.items():
        found[shard].append(Claim(model.key, member, generation(model, member), partitions(model, member)))
    return found


async def begin_again(model: Model) -> None:
    """A new process of the coordinator, which waits for the three shards."""
    model.coordinator = model.new_coordinator(0)
    model.coordinator.begin(2 << 32, range(3))


def test_a_new_process_moves_nothing_between_members_that_are_named_again() -> None:
    async def work(model: Model) -> None:
        ev.apply(model.metadata, ev.PartitionsAdded(0, 0, 3, [11, 12, 13], [0, 1, 2]))
        where = {1: 2, 2: 1, 3: 0}
        for member, shard in where.items():
            await model.coordinator.join(model.key, member, shard)
        before = {member: partitions(model, member) for member in where}
        claims = claims_of(model, where)
        await begin_again(model)
        for shard in 0, 1, 2:
            model.coordinator.announce(shard, claims[shard])
        for member in where:
            await model.coordinator.until_granted(model.key, member)
            assert partitions(model, member) == before[member]
        assert generation(model, 1) > 2 << 32

    run(work)


@pytest.mark.parametrize("ends", ["named", "dead", "time"])
def test_nothing_is_assigned_before_each_shard_has_named_its_members_or_is_given_up(ends: str) -> None:
    async def work(model: Model) -> None:
        for member in 1, 2:
            await model.coordinator.join(model.key, member, member)
        claims = claims_of(model, {1: 1, 2: 2})
        before = {member: partitions(model, member) for member in (1, 2)}
        await begin_again(model)
        waits = asyncio.ensure_future(model.coordinator.until_gathered())
        model.coordinator.announce(0, [])
        model.coordinator.announce(1, claims[1])
        await asyncio.sleep(0)
        assert not waits.done() and model.coordinator.groups[model.key].wanted == []
        if ends == "named":
            model.coordinator.announce(2, claims[2])
        elif ends == "dead":
            model.coordinator.shard_ended(2)
        else:
            model.coordinator.end_gathering()
        await waits
        await model.coordinator.until_granted(model.key, 1)
        assert partitions(model, 1) == (before[1] if ends == "named" else [0, 1, 2])

    run(work)


def test_a_member_that_is_not_named_again_by_its_shard_has_left() -> None:
    async def work(model: Model) -> None:
        for member in 1, 2:
            await model.coordinator.join(model.key, member, 1)
        model.coordinator.announce(1, claims_of(model, {1: 1})[1])
        await until(model, lambda: partitions(model, 1) == [0, 1, 2])
        assert model.coordinator.sync(model.key, 2) is None

    run(work)


def test_a_partition_that_moves_at_a_new_process_waits_for_what_its_member_has_in_hand() -> None:
    """Member 1 says that it has all, and a second one is named with nothing."""

    async def work(model: Model) -> None:
        await join_and_read(model)
        claims = [*claims_of(model, {1: 0})[0], Claim(model.key, 2, 0, [])]
        await begin_again(model)
        model.coordinator.announce(0, claims)
        for shard in 1, 2:
            model.coordinator.announce(shard, [])
        await model.coordinator.until_granted(model.key, 1)
        assert len(partitions(model, 1)) == 2 and partitions(model, 2) == []
        model.now += TIMEOUT_S
        await until(model, lambda: len(partitions(model, 2)) == 1)

    run(work)


def test_a_thousand_groups_of_ten_members_and_one_of_them_changes() -> None:
    """Nothing of a change of one group touches another."""

    async def work(model: Model) -> None:
        for group in range(1, 1000):
            ev.apply(model.metadata, ev.GroupCreated(0, 0, group, f"g{group}", 1))
        keys = [model.key.__class__(0, 0, model.topic.uid, group) for group in range(1000)]
        for number, key in enumerate(keys):
            for member in range(10):
                await model.coordinator.join(key, 10 * number + member, member % 3)
        before = [model.coordinator.groups[key].generation for key in keys]
        await model.coordinator.leave(keys[7], 70)
        after = [model.coordinator.groups[key].generation for key in keys]
        assert [number for number, _ in enumerate(keys) if before[number] != after[number]] == [7]
        assert sum(len(model.coordinator.groups[key].members) for key in keys) == 9999

    run(work)
