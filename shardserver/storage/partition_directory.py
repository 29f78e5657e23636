"""The directory of one partition's files: its name, and its removal with the partition."""

from __future__ import annotations

import os

from shardserver.storage.directory import names_in
from shardserver.storage.disk import Disk
from shardserver.storage.segment import SEGMENT_NAME
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted


def partition_directory(parent: str, uid: int) -> str:
    return os.path.join(parent, f"{uid:016x}")


async def remove_partition_directory(disk: Disk, faults: SyncFaults, directory: str) -> None:
    """With its files. One that is gone already is fine. Raises StorageError."""
    parent, since = os.path.dirname(directory), faults.number
    for name in await names_in(disk, directory):
        await disk.unlink(os.path.join(directory, name))
    await disk.remove_directory(directory)
    await sync_directory_noted(disk, faults, parent, since)


async def remove_other_segments(disk: Disk, faults: SyncFaults, directory: str, known: set[str]) -> None:
    """What failed runs and rolls left behind: segments whose paths are not known. Raises StorageError."""
    since = faults.number
    for name in await disk.list_directory(directory):
        path = os.path.join(directory, name)
        if SEGMENT_NAME.fullmatch(name) and path not in known:
            await disk.unlink(path)
    await sync_directory_noted(disk, faults, directory, since)
