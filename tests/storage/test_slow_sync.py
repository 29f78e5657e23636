"""A synced write that takes long is told of, with its file and its time."""

from __future__ import annotations

import asyncio

import pytest

from shardserver.memory.aligned import aligned_buffer
from shardserver.storage.synced_write import SyncFaults, write_synced
from tests.fault_disk import FaultDisk


@pytest.mark.parametrize(("slow_s", "told"), [(0.0, ["journal"]), (60.0, [])])
def test_a_slow_sync_is_told_of(slow_s: float, told: list[str]) -> None:
    found: list[tuple[str, float]] = []

    async def run() -> None:
        disk = FaultDisk(1)
        file = await disk.open("journal", create=True)
        faults = SyncFaults(on_slow=lambda path, took: found.append((path, took)), slow_s=slow_s)
        await write_synced(disk, faults, file, 0, [aligned_buffer(4096)])

    asyncio.run(run())
    assert [path for path, _ in found] == told and all(0 < took < 60 for _, took in found)
