"""Bulk beside small appends: few bytes in runs at a time while small ones wait, and nothing is held back for ever."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shardserver.storage import bulk_runs
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import read_numbers, ticking_clock

PARTITIONS = 6
BATCH_BYTES = 300_000
SETTINGS = LogSettings(
    journal_file_bytes=2 << 20, journal_files=4, max_write_bytes=64 * 1024, direct_bytes=100_000, linger_s=0.01
)


class WatchingDisk(FaultDisk):
    """The most bytes of segment writes in flight at a time."""

    in_flight = most = 0

    def write(self, file, position, buffers, **more):
        size = sum(map(len, buffers)) if file.path.endswith(".log") else 0
        self.in_flight += size
        self.most = max(self.most, self.in_flight)
        done = super().write(file, position, buffers, **more)

        def ended(future: asyncio.Future) -> None:
            self.in_flight -= size

        done.add_done_callback(ended)
        return done


async def open_logs(disk: FaultDisk) -> ShardLog:
    identities = [PartitionIdentity(uid, 1, uid) for uid in range(1, PARTITIONS + 1)]
    source = RecoveryInput(0, PARTITIONS + 1, identities)
    return await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)


def append(logs: ShardLog, uid: int, number: int, size: int) -> asyncio.Future:
    outcome: asyncio.Future = asyncio.get_running_loop().create_future()
    logs.partition(uid).append(make_batch([f"{number} ".encode() + b"x" * size]), 1, outcome.set_result)
    return outcome


@pytest.mark.parametrize("small", [True, False])
def test_runs_in_flight_are_few_while_small_appends_wait(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_runs, "BULK_BESIDE_SMALL_BYTES", 2 * BATCH_BYTES)
    disk = WatchingDisk(1)

    async def run() -> None:
        logs = await open_logs(disk)
        if small:
            await append(logs, PARTITIONS, 0, 100)
        disk.most = 0
        waiting = [append(logs, uid, n, BATCH_BYTES - 400) for n in range(8) for uid in range(1, PARTITIONS)]
        number = 0
        while not all(one.done() for one in waiting):
            number += 1
            await (append(logs, PARTITIONS, number, 100) if small else asyncio.sleep(0))
        assert all(isinstance(one.result(), int) for one in waiting)
        for uid in range(1, PARTITIONS):
            assert await read_numbers(logs, uid) == list(range(8))
        await logs.close()

    asyncio.run(run())
    if small:
        assert disk.most <= 4 * BATCH_BYTES  # a run may take one batch more than its share
    else:
        assert disk.most > 4 * BATCH_BYTES


@pytest.mark.parametrize("least", [600_000, 5 * BATCH_BYTES], ids=["much", "little"])
def test_a_quarter_of_much_bulk_waits_and_nothing_of_little(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all syncs end at once, and the device waits for those answered."""
    monkeypatch.setattr(bulk_runs, "BULK_LEAST_BYTES", least)
    disk = WatchingDisk(1)

    async def run() -> None:
        logs = await open_logs(disk)
        for number in range(2):  # the first one makes the segments
            disk.most = 0
            waiting = [append(logs, uid, number, BATCH_BYTES - 400) for uid in range(1, PARTITIONS)]
            await asyncio.wait(waiting)
            assert [one.result() for one in waiting] == [number] * (PARTITIONS - 1)
        await logs.close()

    asyncio.run(run())
    expected = 3 if least == 600_000 else 5
    assert disk.most // BATCH_BYTES == expected


@pytest.mark.parametrize("size, count", [(4000, 60), (900, 30)], ids=["in runs", "in the journal"])
def test_what_lingered_in_memory_topics_is_all_written_after_one_linger(
    size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is more than one journal write, or the runs in flight, may hold."""
    monkeypatch.setattr(bulk_runs, "BULK_BESIDE_SMALL_BYTES", 150_000)
    monkeypatch.setattr(bulk_runs, "BULK_BYTES", 150_000)
    lingers = 0

    async def run() -> None:
        nonlocal lingers
        identities = [PartitionIdentity(uid, 1, uid, durability=Durability.MEMORY) for uid in range(1, PARTITIONS + 1)]
        source = RecoveryInput(0, PARTITIONS + 1, identities)
        settings = replace(SETTINGS, linger_s=0.3)  # longer than all runs together take
        logs = await recover_shard(FaultDisk(1), "data", settings, source, ticking_clock(), lambda error: None)
        end_linger = logs._end_linger

        def count_linger() -> None:
            nonlocal lingers
            lingers += 1
            end_linger()

        logs._end_linger = count_linger  # type: ignore[method-assign]
        for number in range(count):
            for uid in range(1, PARTITIONS + 1):
                await append(logs, uid, number, size)
        assert any(one.has_work for one in logs.partitions)
        async with asyncio.timeout(30):
            while any(one.has_work for one in logs.partitions):
                await asyncio.sleep(0)
        assert lingers == 1
        await logs.close()

    asyncio.run(run())
