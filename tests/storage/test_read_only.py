"""A device that takes no writes any more: what was acknowledged is served, and a new journal ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shardserver.errors import RejectedError, StorageError
from shardserver.storage.healing import replace_journal
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import (
    SETTINGS,
    UIDS,
    Load,
    abandon,
    append_more,
    check_oracle,
    made_disk,
    open_logs,
    read_numbers,
    recover_and_check,
    ticking_clock,
)
from tests.storage.scenarios import until_dead

ROUNDS = 60


async def open_read_only(disk: FaultDisk) -> ShardLog:
    identities = [PartitionIdentity(uid, 1, uid - 1, segment_bytes=48 * 1024) for uid in UIDS]
    source = RecoveryInput(0, max(UIDS) + 1, identities, read_only=True)
    return await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)


def killed_under_load(seed: int) -> tuple[FaultDisk, Load]:
    """Killed amid writes: of what was in flight some landed, unsynced."""
    disk, load = made_disk(seed).after_kill(seed), Load(seed)
    disk._die_at = 100 + 11 * seed

    async def live() -> None:
        logs = await open_logs(disk)
        await load.run(logs, disk, ROUNDS)
        assert disk.is_dead
        abandon(logs)

    asyncio.run(live())
    return disk.after_kill(seed), load


async def all_numbers(logs: ShardLog) -> dict[int, list[int]]:
    return {uid: await read_numbers(logs, uid) for uid in UIDS}


@pytest.mark.parametrize("seed", range(4))
def test_what_was_acknowledged_is_served_by_a_shard_that_cannot_write(seed: int) -> None:
    disk, load = killed_under_load(seed)
    disk.is_broken = True

    async def live() -> None:
        with pytest.raises(StorageError):
            await open_logs(disk)
        logs = await open_read_only(disk)
        check_oracle(load, await all_numbers(logs))
        load.check_commits(logs)
        outcome: asyncio.Future = asyncio.get_running_loop().create_future()
        logs.partition(1).append(make_batch([b"1"]), 1, outcome.set_result)
        assert isinstance(await outcome, StorageError)
        with pytest.raises(StorageError, match="read-only") as refused:
            logs.offsets.store(logs.partition(1), 1, 7, 0, None)
        assert not isinstance(refused.value, RejectedError)
        with pytest.raises(StorageError):
            await replace_journal(logs)
        assert await all_numbers(logs) is not None

    asyncio.run(live())


@pytest.mark.parametrize("seed", range(16))
def test_a_new_journal_keeps_everything_and_an_ordinary_start_follows(seed: int) -> None:
    disk, load = killed_under_load(seed)

    async def heal() -> dict[int, list[int]]:
        disk.is_broken = True
        logs = await open_read_only(disk)
        disk.is_broken = False
        await replace_journal(logs)
        return await all_numbers(logs)

    served = asyncio.run(heal())
    left = disk.after_power_loss(seed)
    assert asyncio.run(recover_and_check(left, load)) == served
    asyncio.run(append_more(left, load))


@pytest.mark.parametrize("after", [FaultDisk.after_power_loss, FaultDisk.after_kill], ids=["power_loss", "kill"])
def test_a_crash_at_any_operation_of_the_healing_loses_nothing(after: Callable[[FaultDisk, int], FaultDisk]) -> None:
    number = 0
    while True:
        number += 1
        former, load = killed_under_load(number % 5)
        disk = former.after_kill(number)

        async def heal(disk: FaultDisk = disk, number: int = number) -> None:
            logs = await open_read_only(disk)
            disk._die_at = disk.operations + number
            await until_dead(disk, replace_journal(logs))
            abandon(logs)

        asyncio.run(heal())
        if not disk.is_dead:
            assert number > 50
            return
        left = after(disk, number)
        asyncio.run(recover_and_check(left, load))
        asyncio.run(append_more(left, load))


@pytest.mark.parametrize("seed", range(2))
def test_a_healing_that_fails_at_any_operation_is_done_by_the_next_try(seed: int) -> None:
    """Whatever names the failed sync has dropped."""
    number, failures = seed, 0
    while True:
        number += 2
        disk, load = killed_under_load(number % 16)

        async def heal(disk: FaultDisk = disk, operation: int = number) -> int:
            disk.is_broken = True
            logs = await open_read_only(disk)
            disk.is_broken = False
            disk._fail_at = disk.operations + operation
            failed = 0
            while True:
                try:
                    await replace_journal(logs)
                except StorageError:
                    failed += 1
                    continue
                abandon(logs)
                return failed

        failed = asyncio.run(heal())
        failures += failed
        assert failed < 3
        left = disk.after_power_loss(number)
        asyncio.run(recover_and_check(left, load))
        asyncio.run(append_more(left, load))
        if disk._fail_at > disk.operations:
            break
    assert failures > 15


def test_a_read_only_metadata_log_replays_and_takes_nothing() -> None:
    disk = FaultDisk(1)

    async def live() -> None:
        log = MetadataLog(disk, "data/metadata")
        await log.replay()
        await log.append(b"one")
        disk.is_broken = True
        again = MetadataLog(disk, "data/metadata")
        operations = disk.operations
        assert await again.replay(read_only=True) == (None, [b"one"])
        assert disk.operations - operations < 6
        with pytest.raises(StorageError, match="read-only"):
            await again.append(b"two")

    asyncio.run(live())


def test_a_read_only_metadata_log_without_a_generation_makes_none() -> None:
    disk = FaultDisk(1)

    async def live() -> None:
        await disk.make_directory("data/metadata")
        log = MetadataLog(disk, "data/metadata")
        assert await log.replay(read_only=True) == (None, [])
        assert await disk.list_directory("data/metadata") == []
        with pytest.raises(StorageError, match="read-only"):
            await log.append(b"one")

    asyncio.run(live())


def test_a_partition_that_cannot_be_read_is_set_aside_and_the_others_start() -> None:
    disk, load = killed_under_load(1)
    disk.unreadable = f"partitions/{1:016x}"

    async def live() -> None:
        logs = await open_logs(disk)
        with pytest.raises(StorageError):
            await logs.partition(1).reader.read(0, 10, 10_000)
        with pytest.raises(StorageError):
            logs.partition(1).reader.try_read(0, 10, 10_000)
        found = await read_numbers(logs, 2)
        assert set(load.acknowledged[2]) <= set(found)
        outcome: asyncio.Future = asyncio.get_running_loop().create_future()
        logs.partition(1).append(make_batch([b"1"]), 1, outcome.set_result)
        assert isinstance(await outcome, StorageError)
        abandon(logs)
        disk.unreadable = ""

    asyncio.run(live())
    asyncio.run(recover_and_check(disk.after_kill(2), load))
