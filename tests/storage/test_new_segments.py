"""The segments of a group's first flush: how often the disk is asked, and a failure or a crash at any step."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from shardserver.errors import StorageError
from shardserver.storage.disk import Act, GroupWrite, Step
from shardserver.storage.flush import GROUP_PARTITIONS
from shardserver.storage.identity_file import read_identity
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults
from tests.fault_disk import FaultDisk
from tests.storage.log_world import SETTINGS, abandon, ticking_clock
from tests.storage.test_rules import append, read_numbers, until_dead

FEW = 2


class CountingDisk(FaultDisk):
    """asked: how often for a group; synced: files and directories."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.asked: list[str] = []
        self.synced: Counter[str] = Counter()

    def _submit(self, what: str, *more: Any, **options: Any) -> asyncio.Future:
        if what.startswith("sync"):
            self.synced[what] += 1
        return super()._submit(what, *more, **options)

    def do_steps(self, chains: int, steps: Sequence[Step]) -> asyncio.Future:
        self.asked.append("steps")
        return super().do_steps(chains, steps)

    def write_group(self, writes: Sequence[GroupWrite]) -> asyncio.Future:
        self.asked.append("writes")
        return super().write_group(writes)


async def open_labelled(disk: FaultDisk, partitions: int, faults: SyncFaults | None = None) -> ShardLog:
    identities = [PartitionIdentity(uid, 1, uid - 1, label=lambda: b"name") for uid in range(1, partitions + 1)]
    source = RecoveryInput(0, partitions + 1, identities, faults=faults or SyncFaults())
    settings = replace(SETTINGS, journal_file_bytes=1 << 20, max_write_bytes=64 * 1024)
    return await recover_shard(disk, "data", settings, source, ticking_clock(), lambda error: None)


async def fill(logs: ShardLog, partitions: int) -> None:
    for uid in range(1, partitions + 1):
        await append(logs, uid, 1, uid)


@pytest.mark.parametrize("partitions", [1, GROUP_PARTITIONS])
def test_a_first_flush_asks_the_disk_as_often_for_a_group_as_for_one(partitions: int) -> None:
    """Rules 24 and 29: directories, then files, then runs; four syncs a partition, and one of what they share."""
    disk = CountingDisk(1)

    async def life() -> None:
        logs = await open_labelled(disk, partitions)
        await fill(logs, partitions)
        disk.asked.clear()
        disk.synced.clear()
        await logs.flush_partitions(list(logs.partitions))
        assert disk.asked == ["steps", "steps", "writes"]
        assert disk.synced == {"sync": 3 * partitions, "sync directory": 1 + partitions}
        assert all(one.flushed_end == 1 for one in logs.partitions)
        abandon(logs)

    asyncio.run(life())


async def contents(disk: FaultDisk) -> list[list[int]]:
    logs = await open_labelled(disk, FEW)
    assert all(one.fenced is None for one in logs.partitions)
    found = [await read_numbers(logs, uid) for uid in range(1, FEW + 1)]
    await logs.close()
    return found


EXPECTED = [[uid] for uid in range(1, FEW + 1)]


@pytest.mark.parametrize("left", [FaultDisk.after_kill, FaultDisk.after_power_loss], ids=["kill", "power loss"])
def test_a_crash_at_any_step_of_a_first_flush_loses_nothing(left: Callable[[FaultDisk, int], FaultDisk]) -> None:
    """Also when the journal's file is used again right after it, and the next start is the end of that too."""

    async def life(disk: FaultDisk, steps: int) -> None:
        logs = await open_labelled(disk, FEW)
        await fill(logs, FEW)
        disk._die_at = disk.operations + steps
        await until_dead(disk, logs.flush_partitions(list(logs.partitions)))
        abandon(logs)
        if not disk.is_dead:
            disk.files = {name: node for name, node in disk.files.items() if "/journal" not in name}
            disk.durable_files = {name: node for name, node in disk.durable_files.items() if "/journal" not in name}

    for steps in itertools.count(1):
        disk = FaultDisk(steps)
        asyncio.run(life(disk, steps))
        after = left(disk, steps)
        assert asyncio.run(contents(after)) == EXPECTED, f"{steps} operations"
        assert asyncio.run(contents(after.after_power_loss(steps))) == EXPECTED, f"{steps} operations, and once more"
        if not disk.is_dead:
            break
    assert steps > 12 * FEW


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_after_a_failure_at_any_step_the_next_flush_makes_all_of_it(number: int) -> None:
    """What the first one left is in nobody's way, and a crash then loses nothing."""
    kinds: set[str] = set()

    async def life(disk: FaultDisk, steps: int) -> None:
        logs = await open_labelled(disk, FEW)
        await fill(logs, FEW)
        disk._fail_at, disk._fail_errno = disk.operations + steps, number
        try:
            await logs.flush_partitions(list(logs.partitions))
        except StorageError as error:
            kinds.add(str(error).partition(":")[0])
        else:
            assert not disk.has_failed
        disk._fail_at = 0
        await logs.flush_partitions(list(logs.partitions))
        for one in logs.partitions:
            assert one.flushed_end == 1 and one.hint() is not None
            assert await read_identity(disk, one.directory, one.uid) == b"name"
        abandon(logs)

    for steps in itertools.count(1):
        disk = FaultDisk(steps)
        asyncio.run(life(disk, steps))
        assert asyncio.run(contents(disk.after_power_loss(steps))) == EXPECTED, f"operation {steps}"
        if not disk.has_failed:
            break
    assert {"mkdir", "sync directory", "unlink", "open", "write", "sync", "rename"} <= kinds


@pytest.mark.parametrize("act", [Act.MAKE_DIRECTORY, Act.CREATE])
def test_what_was_made_beside_another_files_failed_sync_does_not_count(act: Act) -> None:
    """Rule 20: its own syncs succeed, and prove nothing. Nothing is put into a directory of that kind."""
    faults = SyncFaults()

    class Doubtful(FaultDisk):
        is_done = False

        def do_steps(self, chains: int, steps: Sequence[Step]) -> asyncio.Future:
            doing = super().do_steps(chains, steps)
            if chains == FEW and not self.is_done and any(one.act is act for one in steps):
                self.is_done = True
                faults.note()
            return doing

    disk = Doubtful(1)

    async def life() -> None:
        logs = await open_labelled(disk, FEW, faults)
        await fill(logs, FEW)
        with pytest.raises(StorageError, match="another sync failed"):
            await logs.flush_partitions(list(logs.partitions))
        assert disk.is_done and not any(one.segments for one in logs.partitions)
        assert any(name.startswith(logs.partitions_directory) for name in disk.files) == (act is Act.CREATE)
        await logs.flush_partitions(list(logs.partitions))
        assert all(one.flushed_end == 1 for one in logs.partitions)
        abandon(logs)

    asyncio.run(life())


def test_a_name_that_changes_while_the_first_identity_is_written_is_written_too() -> None:
    disk = FaultDisk(1)
    name = b"old"

    async def life() -> None:
        nonlocal name
        source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0, label=lambda: name)])
        logs = await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)
        await append(logs, 1, 1, 1)
        partition = logs.partition(1)
        flushing = asyncio.ensure_future(partition.flush())
        while not any("identity.new" in path for path in disk.files):
            await asyncio.sleep(0)
        assert not partition.keeps_identity
        name = b"new"
        await flushing
        assert partition.keeps_identity
        assert await read_identity(disk, partition.directory, 1) == b"new"
        abandon(logs)

    asyncio.run(life())


def test_a_hint_is_encoded_anew_when_its_partition_has_a_new_run_or_segment() -> None:
    """Rule 11; a checkpoint of many partitions takes what was encoded before."""

    async def life() -> None:
        logs = await open_labelled(FaultDisk(1), 1)
        partition = logs.partition(1)
        assert partition.encode_hint() is None

        async def flushed() -> None:
            await append(logs, 1)
            await partition.flush()

        async def rolled() -> None:
            assert await logs.roll(partition)

        async def only_appended() -> None:
            await append(logs, 1)

        for step, is_new in ((flushed, True), (flushed, True), (only_appended, False), (rolled, True), (flushed, True)):
            before = partition.encode_hint()
            await step()
            assert partition.encoded_hint == (None if is_new else before), step.__name__
        abandon(logs)

    asyncio.run(life())
