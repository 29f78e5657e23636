"""A synced write that takes long, or a group of them, is told of with its file and its time."""

from __future__ import annotations

import asyncio

import pytest

from shardserver.memory.aligned import aligned_buffer
from shardserver.storage.synced_write import SyncFaults, write_group_synced, write_synced
from tests.fault_disk import FaultDisk

Told = list[tuple[str, float, int]]
EACH_LIMIT = pytest.mark.parametrize(("slow_s", "is_told"), [(0.0, True), (60.0, False)])


def told_to(found: Told, slow_s: float) -> SyncFaults:
    return SyncFaults(on_slow=lambda path, took, files: found.append((path, took, files)), slow_s=slow_s)


@EACH_LIMIT
def test_a_slow_sync_is_told_of(slow_s: float, is_told: bool) -> None:
    found: Told = []

    async def run() -> None:
        disk = FaultDisk(1)
        file = await disk.open("journal", create=True)
        await write_synced(disk, told_to(found, slow_s), file, 0, [aligned_buffer(4096)])

    asyncio.run(run())
    assert [(path, files) for path, _, files in found] == ([("journal", 1)] if is_told else [])
    assert all(0 < took < 60 for _, took, _ in found)


@EACH_LIMIT
def test_a_slow_group_is_told_of_once_with_its_first_file_and_their_number(slow_s: float, is_told: bool) -> None:
    found: Told = []

    async def run() -> None:
        disk = FaultDisk(1)
        files = [await disk.open(name, create=True) for name in ("a", "b", "c")]
        group = [(file, 0, [aligned_buffer(4096)]) for file in files]
        assert await write_group_synced(disk, told_to(found, slow_s), group) == [None] * 3

    asyncio.run(run())
    assert [(path, files) for path, _, files in found] == ([("a", 3)] if is_told else [])
    assert all(0 < took < 60 for _, took, _ in found)
