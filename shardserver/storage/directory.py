"""Directories: what is in one, and one with a name that lasts."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence

from shardserver.errors import StorageError
from shardserver.storage.disk import Disk
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted

SYNCED_TOGETHER = 256


async def names_in(disk: Disk, directory: str) -> list[str]:
    """Sorted; none when there is no such directory. Raises StorageError."""
    try:
        return await disk.list_directory(directory)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


async def sync_directories_noted(disk: Disk, faults: SyncFaults, directories: Sequence[str]) -> None:
    """Make the names in many directories durable, SYNCED_TOGETHER by each thread of the disk. Raises StorageError."""
    since = faults.number
    starts = range(0, len(directories), SYNCED_TOGETHER)
    groups = [directories[start : start + SYNCED_TOGETHER] for start in starts]
    for errors in await asyncio.gather(*map(disk.sync_directories, groups)):
        for error in filter(None, errors):
            faults.note()
            raise error
    if faults.number != since:
        raise StorageError("a sync failed beside those of directories, and may have dropped their names")


async def make_synced_directory(disk: Disk, faults: SyncFaults, directory: str) -> None:
    """Its name is durable when this returns. Raises StorageError: nothing may be put into it yet.

    An empty one is made anew: of a name that a failed sync has dropped, here or in a process before this one, no later
    sync says more than that it is there (rule 20).
    """
    since = faults.number
    if not await names_in(disk, directory):
        await disk.remove_directory(directory)
        await disk.make_directory(directory)
    await sync_directory_noted(disk, faults, os.path.dirname(directory), since)
