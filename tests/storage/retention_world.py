"""Logs of one shard whose clock the test moves, with segments of a few batches."""

from __future__ import annotations

import asyncio

from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch, payloads_of
from tests.fault_disk import FaultDisk
from tests.storage.log_world import SETTINGS

SEGMENT_BYTES = 48 * 1024
LARGE = SETTINGS.max_write_bytes  # it does not fit the journal
HOUR_US = 3600 * 1_000_000
DAY_US = 24 * HOUR_US
UIDS = (1, 2)


class MovedClock:
    """Microseconds; each look at it takes one."""

    def __init__(self) -> None:
        self.now_us = DAY_US

    def __call__(self) -> int:
        self.now_us += 1
        return self.now_us


async def open_logs(
    disk: FaultDisk,
    clock: MovedClock | None = None,
    *,
    each: int | None = None,
    expiry_us: int | None = None,
    durability: Durability = Durability.FSYNC,
) -> ShardLog:
    identities = [
        PartitionIdentity(
            uid, 1, uid, segment_bytes=SEGMENT_BYTES, max_bytes=each, expiry_us=expiry_us, durability=durability
        )
        for uid in UIDS
    ]
    source = RecoveryInput(0, max(UIDS) + 1, identities)
    return await recover_shard(disk, "data", SETTINGS, source, clock or MovedClock(), lambda error: None)


async def append(logs: ShardLog, uid: int, count: int, size: int = LARGE) -> None:
    """Batches of one message, by default so large that they go into segments directly."""
    for number in range(count):
        outcome: asyncio.Future = asyncio.get_running_loop().create_future()
        logs.partition(uid).append(make_batch([f"{number} ".encode() + b"x" * size]), 1, outcome.set_result)
        assert isinstance(await outcome, int)


async def commit(logs: ShardLog, uid: int, kind: int, consumer: int, offset: int) -> None:
    outcome: asyncio.Future = asyncio.get_running_loop().create_future()
    logs.offsets.store(logs.partition(uid), kind, consumer, offset, outcome.set_result)
    assert await outcome is None


async def read_offsets(logs: ShardLog, uid: int, start: int) -> list[int]:
    """The offsets that a consumer gets who asks from `start` on."""
    log, found = logs.partition(uid), []
    while (result := await log.reader.read(start, 10, 1 << 20)).count:
        assert len(payloads_of(b"".join(result.buffers))) == result.count
        found += range(result.last_offset + 1 - result.count, result.last_offset + 1)
        start = result.last_offset + 1
    return found
