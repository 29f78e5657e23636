"""The ring grows under load, by config or with the partitions, and a crash at any step of it loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import (
    SETTINGS,
    UIDS,
    Load,
    abandon,
    append_more,
    made_disk,
    open_logs,
    recover_and_check,
    ticking_clock,
)
from tests.storage.scenarios import until_dead

LARGER = replace(SETTINGS, journal_files=7)


async def open_with(disk: FaultDisk, settings: LogSettings, partitions: int = len(UIDS)) -> ShardLog:
    identities = [PartitionIdentity(uid, 1, uid - 1, segment_bytes=48 * 1024) for uid in range(1, partitions + 1)]
    source = RecoveryInput(0, 1000, identities)
    return await recover_shard(disk, "data", settings, source, ticking_clock(), lambda error: None)


def test_more_files_in_the_configuration_join_the_ring_and_are_used() -> None:
    disk, load = made_disk(1).after_kill(1), Load(1)

    async def live() -> None:
        logs = await open_with(disk, LARGER)
        await load.run(logs, disk, 80)
        assert logs.journal.files == 7
        assert max(file.sequence for file in logs.journal._files if file.number >= 4) > 0
        abandon(logs)

    asyncio.run(live())
    left = disk.after_power_loss(1)
    assert sum(path.endswith(".journal") for path in left.files) == 7
    asyncio.run(recover_and_check(left, load))
    asyncio.run(append_more(left, load))


def test_the_ring_has_64_kib_for_each_partition() -> None:
    disk = FaultDisk(2)

    async def live() -> None:
        logs = await open_with(disk, SETTINGS, partitions=40)
        await logs.wait_idle()
        assert 40 * 65536 <= logs.journal.ring_bytes < 40 * 65536 + SETTINGS.journal_file_bytes
        logs.create_partition(PartitionIdentity(41, 1, 40))
        logs.create_partition(PartitionIdentity(42, 1, 41))
        logs.create_partition(PartitionIdentity(43, 1, 42))
        await logs.wait_idle()
        assert logs.journal.ring_bytes >= 43 * 65536
        await logs.close()

    asyncio.run(live())


def test_a_disk_without_room_for_a_file_serves_with_the_ring_that_is_there() -> None:
    disk, load = made_disk(3).after_kill(3), Load(3)
    disk.capacity_bytes = disk._used() + 200_000

    async def live() -> None:
        logs = await open_with(disk, LARGER)
        await logs.wait_idle()
        assert logs.journal.files == 5 and not any(path.endswith(".new") for path in disk.files)
        disk.capacity_bytes = None
        await load.run(logs, disk, 20)
        assert load.refused == 0
        abandon(logs)

    asyncio.run(live())
    asyncio.run(recover_and_check(disk.after_kill(4), load))


@pytest.mark.parametrize("after", [FaultDisk.after_power_loss, FaultDisk.after_kill], ids=["power_loss", "kill"])
def test_a_crash_at_any_operation_while_it_grows_loses_nothing(after: Callable[[FaultDisk, int], FaultDisk]) -> None:
    for number in range(1, 400, 3):
        disk, load = made_disk(number).after_kill(number), Load(number)
        disk._die_at = number

        async def live(disk: FaultDisk = disk, load: Load = load) -> None:
            logs = await until_dead(disk, open_with(disk, LARGER))
            if logs is not None:
                await load.run(logs, disk, 12)
                abandon(logs)

        asyncio.run(live())
        if not disk.is_dead:
            assert number > 60  # growing takes the first thirty
            return
        left = after(disk, number)
        first = asyncio.run(recover_and_check(left, load))
        again = left.after_power_loss(number)
        assert asyncio.run(recover_and_check(again, load)) == first

        async def grow_at_last(disk: FaultDisk = again) -> None:
            logs = await open_logs(disk)
            logs._growth.least_files = LARGER.journal_files
            logs._growth.start_if_due(logs.journal)
            await logs.wait_idle()
            assert logs.journal.files == 7
            await logs.close()

        asyncio.run(grow_at_last())
    raise AssertionError("never at the end")


async def append_one(logs: ShardLog, uid: int) -> None:
    done = asyncio.get_running_loop().create_future()
    logs.partition(uid).append(logs.copy_batch(make_batch([b"x" * 9000])), 1, done.set_result)
    assert isinstance(await done, int)


async def used_at_flush(disk: FaultDisk, *, apart: bool) -> tuple[int, int]:
    """(files of the ring, how many are in use when partition 1 begins to be flushed). apart: 2 keeps a later file."""
    logs = await open_with(disk, replace(SETTINGS, tail_bytes=8 << 20))
    logs._growth.least_files = 16
    logs._growth.start_if_due(logs.journal)
    await logs.wait_idle()
    await append_one(logs, 1)
    first = logs.journal.sequence
    while apart and logs.journal.sequence == first:
        await append_one(logs, 1)
    while not logs.journal.is_flush_due:
        assert not logs.partition(1).flushed_end
        await append_one(logs, 2)
    used = logs.journal.files_in_use
    while not logs.partition(1).flushed_end:
        await asyncio.sleep(0)
    files = logs.journal.files
    await logs.close()
    return files, used


def test_a_grown_ring_is_flushed_later_when_few_partitions_keep_its_oldest_file() -> None:
    assert asyncio.run(used_at_flush(made_disk(5).after_kill(5), apart=False)) == (16, 9)
    assert asyncio.run(used_at_flush(made_disk(5).after_kill(5), apart=True)) == (16, 13)


def test_partitions_of_a_file_are_flushed_in_the_order_in_which_they_were_made() -> None:
    async def live() -> None:
        logs = await open_with(FaultDisk(6), SETTINGS, partitions=5)
        for uid in (4, 2, 5, 1, 3):
            await append_one(logs, uid)
        assert [one.uid for one in logs._pins.through(logs.journal.sequence)] == [1, 2, 3, 4, 5]
        await logs.close()

    asyncio.run(live())
