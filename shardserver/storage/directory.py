"""Directories: what is in one, and one with a name that lasts."""

from __future__ import annotations

import errno
import os

from shardserver.errors import StorageError
from shardserver.storage.disk import Disk
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted


async def names_in(disk: Disk, directory: str) -> list[str]:
    """Sorted; none when there is no such directory. Raises StorageError."""
    try:
        return await disk.list_directory(directory)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


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
