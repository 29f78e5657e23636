"""Direct runs of `write` topics: several writes, each answered at once, and one sync behind them (storage rule 8)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from shardserver.errors import StorageError
from shardserver.storage import bulk_runs, direct_run
from shardserver.storage.settings import Durability
from shardserver.storage.shard_log import ShardLog
from tests.fault_disk import FaultDisk, FaultFile, HoldingDisk
from tests.storage.log_world import SETTINGS, abandon, append, open_logs, read_numbers

BULK = 13_000  # more than direct_bytes of the settings
SEED = 5


class WatchedDisk(HoldingDisk):
    """What segments and journal were asked for, in order. unsynced: bytes of segments, and the most at a time."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.calls: list[str] = []
        self.unsynced = self.most_unsynced = 0

    def write(self, file: FaultFile, position: int, buffers, **more) -> asyncio.Future:  # type: ignore[no-untyped-def]
        if file.path.endswith(".log"):
            self.calls.append("write")
            self.unsynced += sum(map(len, buffers))
            self.most_unsynced = max(self.most_unsynced, self.unsynced)
        elif file.path.endswith(".journal"):
            self.calls.append("journal")
        return super().write(file, position, buffers, **more)

    def sync(self, file: FaultFile) -> asyncio.Future:
        if file.path.endswith(".log"):
            self.calls.append("sync")
            self.unsynced = 0
        return super().sync(file)


@pytest.fixture(autouse=True)
def a_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which no run ends by itself."""
    monkeypatch.setattr(direct_run, "UNSYNCED_S", 60.0)


def live(disk: FaultDisk, work: Callable[[ShardLog], Awaitable[None]], **more: object) -> None:
    async def life() -> None:
        logs = await open_logs(disk, Durability.WRITE, **more)
        await append(logs, 1, number=0, size=BULK)  # has the first segment made
        await logs.partition(1).end_run()
        await logs.partition(1).flush()
        if isinstance(disk, WatchedDisk):
            disk.calls.clear()
        await work(logs)
        abandon(logs)

    asyncio.run(life())


def test_writes_are_answered_one_by_one_and_share_a_sync() -> None:
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        log = logs.partition(1)
        for number in range(1, 3):
            await append(logs, 1, number=number, size=BULK)
        assert disk.calls == ["write"] * 2 and log.high_watermark == 3 and log.flushed_end == log.durable_end == 1
        assert await read_numbers(logs, 1) == [0, 1, 2]
        await log.end_run()  # who needs it idle does not wait for the minute
        assert disk.calls == ["write"] * 2 + ["sync"] and log.flushed_end == log.durable_end == 3

    live(disk, work)


def test_no_more_stays_unsynced_than_the_rule_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_run, "UNSYNCED_BYTES", 31_000)
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        log = logs.partition(1)
        # No roll: the run behind it writes what the journal has synced meanwhile, too.
        log.identity = replace(log.identity, segment_bytes=1 << 20)
        for number in range(1, 20):
            await append(logs, 1, number=number, size=BULK)
        assert 30_000 < disk.most_unsynced <= 31_000 + 4096  # a run's padding is not foreseen
        await log.end_run()
        assert await read_numbers(logs, 1) == list(range(20))

    live(disk, work)


def test_what_is_unsynced_is_synced_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_run, "UNSYNCED_S", 0.01)
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        await append(logs, 1, number=1, size=BULK)
        async with asyncio.timeout(30):
            while logs.partition(1).durable_end < 2:
                await asyncio.sleep(0.001)

    live(disk, work)


def test_a_small_append_goes_to_the_journal_behind_the_sync() -> None:
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        await append(logs, 1, number=1, size=BULK)
        await append(logs, 2, number=1)  # another partition's does not care
        assert disk.calls == ["write", "journal"]
        await append(logs, 1, number=2)
        assert disk.calls == ["write", "journal", "sync", "journal"]

    live(disk, work)


def test_bulk_that_waits_for_others_in_flight_does_not_end_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_runs, "BULK_BYTES", 1)
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        await append(logs, 2, number=0, size=BULK)
        await logs.partition(2).end_run()
        disk.calls.clear()
        await append(logs, 1, number=1, size=BULK)
        disk.held = logs.partition(2).segments[-1].file.path
        async with asyncio.timeout(30):
            other = asyncio.ensure_future(append(logs, 2, number=1, size=BULK))
            while disk.calls.count("write") < 2:  # the second one is held
                await asyncio.sleep(0)
            waits = asyncio.ensure_future(append(logs, 1, number=2, size=BULK))
            while not logs._bulk._budget.waiting_bytes:
                await asyncio.sleep(0)
            disk.held = None
            await asyncio.gather(other, waits)
        assert disk.calls.count("write") == 3 and "sync" not in disk.calls

    live(disk, work)


def read_after(heir: FaultDisk) -> list[int]:
    async def look() -> list[int]:
        logs = await open_logs(heir, Durability.WRITE)
        found = await read_numbers(logs, 1)
        abandon(logs)
        return found

    return asyncio.run(look())


def test_a_failed_sync_fails_all_writes_before_it_and_they_are_written_elsewhere() -> None:
    """They were acknowledged, and count as durable only then."""
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        log = logs.partition(1)
        for number in (1, 2):
            await append(logs, 1, number=number, size=BULK)
        disk._fail_at = disk.operations + 1
        await log.end_run()
        assert log.durable_end == 1 and log.high_watermark == 3
        assert await read_numbers(logs, 1) == [0, 1, 2]
        async with asyncio.timeout(30):
            while log.durable_end < 3:
                log.hurry()
                await asyncio.sleep(0.001)

    live(disk, work, settings=replace(SETTINGS, retry_s=0.5))  # what is looked at in between has not been tried again
    assert read_after(disk.after_power_loss(SEED)) == [0, 1, 2]


def test_a_failed_sync_of_another_file_has_them_written_again() -> None:
    """It may have dropped them (rule 20)."""
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        log = logs.partition(1)
        for number in (1, 2):
            await append(logs, 1, number=number, size=BULK)
        logs.resources.faults.note()
        disk.files[log.segments[-1].path].drop_unsynced()
        await log.end_run()
        assert log.durable_end == 3 and disk.calls == ["write", "write", "sync", "write", "write", "sync"]

    live(disk, work)
    assert read_after(disk.after_power_loss(SEED)) == [0, 1, 2]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_write_that_fails_does_not_take_answered_ones_before_it_along(error: int) -> None:
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        await append(logs, 1, number=1, size=BULK)
        disk._fail_at, disk._fail_errno = disk.operations + 1, error
        with pytest.raises(StorageError):
            await append(logs, 1, number=2, size=BULK)

    live(disk, work)
    assert read_after(disk.after_power_loss(SEED)) == [0, 1]


def test_a_write_that_fails_behind_others_is_refused_alone() -> None:
    disk = WatchedDisk(SEED)

    async def work(logs: ShardLog) -> None:
        await append(logs, 1, number=1, size=BULK)
        disk._fail_at = disk.operations + 1
        with pytest.raises(StorageError):
            await append(logs, 1, number=2, size=BULK)
        await append(logs, 1, number=3, size=BULK)
        assert await read_numbers(logs, 1) == [0, 1, 3]

    live(disk, work)


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_loses_nothing_that_was_answered_and_a_power_loss_leaves_a_beginning(seed: int) -> None:
    disk = WatchedDisk(seed)

    async def work(logs: ShardLog) -> None:
        for number in range(1, 3):
            await append(logs, 1, number=number, size=BULK)
        assert "sync" not in disk.calls

    live(disk, work)

    async def found(heir: FaultDisk) -> list[int]:
        logs = await open_logs(heir, Durability.WRITE)
        numbers = await read_numbers(logs, 1)
        await append(logs, 1, number=9, size=BULK)
        assert await read_numbers(logs, 1) == [*numbers, 9]
        abandon(logs)
        return numbers

    lost = disk.after_power_loss(seed)
    assert asyncio.run(found(disk.after_kill(seed))) == [0, 1, 2]
    left = asyncio.run(found(lost))
    assert left and left == list(range(len(left)))
