"""Retention by size of a partition: oldest sealed segments first."""

from __future__ import annotations

import asyncio

from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import SETTINGS, ticking_clock

SEGMENT_BYTES = 48 * 1024


async def open_logs(disk: FaultDisk, *, each: int | None = None) -> ShardLog:
    identities = [PartitionIdentity(uid, 1, uid, segment_bytes=SEGMENT_BYTES, max_bytes=each) for uid in (1, 2)]
    return await recover_shard(disk, "data", SETTINGS, RecoveryInput(0, 3, identities), ticking_clock(), lambda e: None)


async def append(logs: ShardLog, uid: int, count: int) -> None:
    """Batches large enough to go into segments directly."""
    for number in range(count):
        outcome: asyncio.Future = asyncio.get_running_loop().create_future()
        logs.partition(uid).append(make_batch([f"{number} ".encode() + b"x" * 15_000]), 1, outcome.set_result)
        assert isinstance(await outcome, int)


def test_a_partition_keeps_its_limit_and_its_active_segment() -> None:
    async def run() -> None:
        logs = await open_logs(FaultDisk(2), each=2 * SEGMENT_BYTES)
        await append(logs, 1, 30)
        await append(logs, 2, 2)
        assert await logs.enforce_retention() > 0
        sealed = logs.partition(1).segments[:-1]
        assert 0 < sum(one.data_bytes for one in sealed) <= 2 * SEGMENT_BYTES
        assert logs.partition(2).first_offset == 0
        await logs.close()

    asyncio.run(run())


def test_without_a_limit_nothing_goes() -> None:
    async def run() -> None:
        logs = await open_logs(FaultDisk(3))
        await append(logs, 1, 30)
        assert await logs.enforce_retention() == 0 and logs.partition(1).first_offset == 0
        await logs.close()

    asyncio.run(run())
