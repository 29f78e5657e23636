"""What the metadata does not know is moved aside whole; what is somebody else's stays."""

import asyncio
from pathlib import Path

import pytest

from shardserver.errors import StorageError
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.synced_write import SyncFaults
from shardserver.storage.unknown_directories import set_aside_unknown
from tests.fault_disk import FaultDisk


def test_a_directory_that_cannot_be_read_is_no_first_start() -> None:
    """Found by the simulation, seed 333023: what was to be moved aside stayed."""
    disk = FaultDisk(1, fail_at=1)
    with pytest.raises(StorageError):
        asyncio.run(set_aside_unknown(disk, SyncFaults(), "data", set()))


def test_unknown_partitions_are_moved_and_nothing_else(tmp_path: Path) -> None:
    def make(name: str) -> None:
        (tmp_path / "partitions" / name).mkdir(parents=True)
        (tmp_path / "partitions" / name / "data").write_text(name)

    async def run() -> int:
        disk = ThreadDisk(1)
        try:
            return await set_aside_unknown(disk, SyncFaults(), str(tmp_path), {1, 2})
        finally:
            await disk.shut_down()

    assert asyncio.run(run()) == 0
    for name in ("0000000000000001", "0000000000000007", "lost+found", "7", "0000000000000007.old"):
        make(name)
    assert asyncio.run(run()) == 1
    make("0000000000000007")
    assert asyncio.run(run()) == 1
    assert asyncio.run(run()) == 0
    left = sorted(one.name for one in (tmp_path / "partitions").iterdir())
    assert left == ["0000000000000001", "0000000000000007.old", "7", "lost+found"]
    aside = sorted((tmp_path / "set-aside").iterdir())
    assert [one.name for one in aside] == ["0000000000000007.0", "0000000000000007.1"]
    assert (aside[0] / "data").read_text() == "0000000000000007"
