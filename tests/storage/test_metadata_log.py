"""The metadata log where a new generation's name is not durable yet; random lives: scenarios.py, play_metadata."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from shardserver.errors import StorageError
from shardserver.storage.metadata_log import MetadataLog
from tests.fault_disk import FaultDisk
from tests.storage.scenarios import entries_of, until_dead


async def snapshot_behind_an_entry(disk: FaultDisk) -> None:
    log = MetadataLog(disk, "data/metadata")
    await log.replay()
    await log.append(b"first")
    await log.snapshot(b"first")


def faulty_disk(number: int, *, fails: bool) -> FaultDisk:
    return FaultDisk(number, fail_at=number) if fails else FaultDisk(number, die_at=number)


@pytest.mark.parametrize("fails", [False, True], ids=["death", "failure"])
def test_an_entry_after_a_snapshot_that_was_interrupted_survives_a_power_loss(fails: bool) -> None:
    """At any operation of the snapshot; the next process finds one generation or two, and writes to one of them."""

    async def append_later(disk: FaultDisk) -> list[bytes]:
        log = MetadataLog(disk, "data/metadata")
        snapshot, records = await log.replay()
        await log.append(b"second")
        return [*([snapshot] if snapshot else []), *records, b"second"]

    for number in itertools.count(1):
        disk = faulty_disk(number, fails=fails)
        with contextlib.suppress(StorageError):
            asyncio.run(until_dead(disk, snapshot_behind_an_entry(disk)))
        if not (disk.is_dead or disk.has_failed):
            break
        left = disk.after_kill(number)
        wanted = asyncio.run(append_later(left))
        for seed in range(8):
            assert asyncio.run(entries_of(left.after_power_loss(seed))) == wanted, f"operation {number}, seed {seed}"
    assert number > 15
