"""A synced write that takes long is told of, with its file and its time."""

from __future__ import annotations

import asyncio

import pytest

from shardserver.memory.aligned import aligned_buffer
from shardserver.storage import synced_write
from shardserver.storage.synced_write import SLOW_S, SyncFaults, write_synced
from tests.fault_disk import FaultDisk


@pytest.mark.parametrize(("seconds", "told"), [(SLOW_S / 2, []), (SLOW_S, [("journal", SLOW_S)])])
def test_a_slow_sync_is_told_of(seconds: float, told: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, seconds])
    monkeypatch.setattr(synced_write, "monotonic", lambda: next(moments))
    found: list[tuple[str, float]] = []

    async def run() -> None:
        disk = FaultDisk(1)
        file = await disk.open("journal", create=True)
        faults = SyncFaults(on_slow=lambda path, took: found.append((path, took)))
        await write_synced(disk, faults, file, 0, [aligned_buffer(4096)])

    asyncio.run(run())
    assert found == told
