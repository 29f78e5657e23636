"""Every reply is covered by a completed write, under `fsync` by a completed sync, in whatever order things complete."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch
from tests.fault_disk import EarlyDisk, FaultDisk, FaultFile, HastyDisk, RecordingDisk
from tests.storage.log_world import SETTINGS, Load, abandon, open_logs, read_numbers, ticking_clock
from tests.storage.scenarios import until_dead

SEEDS = range(8)


def uncovered(disk: RecordingDisk, seed: int, durability: Durability, *, synced: bool) -> list[bytes]:
    """The records that were acknowledged before a write (or sync) that covers them was complete."""
    early: list[bytes] = []
    seen = []

    def check(record: bytes) -> None:
        seen.append(record)
        if not disk.covers(record, synced=synced):
            early.append(record)

    async def live() -> None:
        logs = await open_logs(disk, durability)
        await Load(seed, check).run(logs, disk, 40)
        abandon(logs)

    asyncio.run(live())
    kinds = {one.file.path.split("/")[1] for one in disk.recorded if any(record in one.data for record in seen)}
    assert kinds == {"shards", "partitions"}, "the load went only one of the two ways"
    assert len(seen) > 50
    return early


@pytest.mark.parametrize("seed", SEEDS)
def test_under_fsync_a_completed_sync_covers_what_is_acknowledged(seed: int) -> None:
    assert uncovered(RecordingDisk(seed), seed, Durability.FSYNC, synced=True) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_under_write_a_completed_write_covers_what_is_acknowledged(seed: int) -> None:
    assert uncovered(RecordingDisk(seed), seed, Durability.WRITE, synced=False) == []


def test_an_engine_that_reports_before_the_sync_is_found_out() -> None:
    assert uncovered(EarlyDisk(1), 1, Durability.FSYNC, synced=True)
    assert uncovered(EarlyDisk(1), 1, Durability.FSYNC, synced=False) == []


def test_an_engine_that_reports_before_the_write_is_found_out() -> None:
    assert uncovered(HastyDisk(1), 1, Durability.WRITE, synced=False)


def test_under_write_the_acknowledgement_does_not_wait_for_the_sync() -> None:
    assert uncovered(RecordingDisk(1), 1, Durability.WRITE, synced=True)


# Durable before visible: names (storage rule 16)


async def open_direct(disk: FaultDisk, *, direct_bytes: int = 1) -> ShardLog:
    """An append is a run of its own, unless direct_bytes says otherwise, or it fits the journal and has no segment."""
    source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0)])
    settings = replace(SETTINGS, direct_bytes=direct_bytes)
    return await recover_shard(disk, "data", settings, source, ticking_clock(), lambda error: None)


OVERSIZE = SETTINGS.max_write_bytes  # for the journal


async def append(logs: ShardLog, number: int, size: int = 0) -> None:
    outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    logs.partition(1).append(make_batch([b"%d " % number + b"x" * size]), 1, outcome.set_result)
    assert isinstance(await outcome, int)


class DeadAtDirectorySync(FaultDisk):
    """The process dies when it is to sync the directory of a partition."""

    def sync_directory(self, path: str):  # type: ignore[no-untyped-def]
        if path.startswith("data/partitions/"):
            self._die_at = self.operations + 1
        return super().sync_directory(path)


class DeadAtHeaderSync(FaultDisk):
    """The process dies when it is to sync the header of a new segment."""

    def sync(self, file: FaultFile):  # type: ignore[no-untyped-def]
        if file.path.endswith(".log"):
            self._die_at = self.operations + 1
        return super().sync(file)


def test_a_segment_whose_header_was_not_synced_before_a_kill_is_not_missed_after_a_power_loss() -> None:
    """What recovery found there is hinted at by the first journal write."""
    for seed in range(12):
        disk: FaultDisk = DeadAtHeaderSync(seed)

        async def first(disk: FaultDisk = disk) -> None:
            logs = await open_direct(disk)
            assert await until_dead(disk, append(logs, 1, OVERSIZE)) is None and disk.is_dead
            abandon(logs)

        async def second(disk: FaultDisk) -> None:
            logs = await open_direct(disk, direct_bytes=10_000)
            await append(logs, 2)
            abandon(logs)

        async def third(disk: FaultDisk) -> list[int]:
            logs = await open_direct(disk)
            assert logs.partition(1).fenced is None
            return await read_numbers(logs, 1)

        asyncio.run(first())
        disk = disk.after_kill(seed)
        asyncio.run(second(disk))
        assert asyncio.run(third(disk.after_power_loss(seed))) == [2], f"seed {seed}"


def test_a_segment_whose_name_was_not_synced_before_a_kill_keeps_what_is_written_to_it_later() -> None:
    for seed in range(12):
        disk: FaultDisk = DeadAtDirectorySync(seed)

        async def first(disk: FaultDisk = disk) -> None:
            logs = await open_direct(disk)
            assert await until_dead(disk, append(logs, 1, OVERSIZE)) is None and disk.is_dead
            abandon(logs)

        asyncio.run(first())
        disk = disk.after_kill(seed)

        async def second(disk: FaultDisk = disk) -> None:
            logs = await open_direct(disk)
            await append(logs, 2, OVERSIZE)
            abandon(logs)

        asyncio.run(second())
        disk = disk.after_power_loss(seed)

        async def third(disk: FaultDisk = disk) -> list[int]:
            logs = await open_direct(disk)
            assert logs.partition(1).fenced is None
            return await read_numbers(logs, 1)

        assert asyncio.run(third()) == [2], f"seed {seed}"
