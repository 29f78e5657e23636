"""The directory of one partition's files: made before the first of them, removed with the partition."""

from __future__ import annotations

import errno
import os

from shardserver.errors import StorageError
from shardserver.storage.disk import Disk
from shardserver.storage.segment import SEGMENT_NAME
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted


def partition_directory(parent: str, uid: int) -> str:
    return os.path.join(parent, f"{uid:016x}")


async def make_partition_directory(disk: Disk, faults: SyncFaults, directory: str) -> None:
    """Anew: of a name that a failed sync has dropped, no later one says more than that it is there (rule 20)."""
    since = faults.number
    await disk.remove_directory(directory)
    await disk.make_directory(directory)
    await sync_directory_noted(disk, faults, os.path.dirname(directory), since)


async def remove_partition_directory(disk: Disk, faults: SyncFaults, directory: str) -> None:
    """With its files. One that is gone already is fine. Raises StorageError."""
    try:
        names = await disk.list_directory(directory)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return
    parent, since = os.path.dirname(directory), faults.number
    for name in names:
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
