"""Directories of shards that no process owns any more: fewer cores than at the last start.

Their partitions are recovered, released and adopted by other shards first (handover.py); then nothing in them counts.
"""

from __future__ import annotations

import os

from shardserver.storage.directory import names_in
from shardserver.storage.disk import Disk
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted

# Beside the numbers: a directory whose removal has begun.
REMOVED = ".removed"
# What a shard keeps in directories of its own (journal.py, healing.py); all else is files.
DIRECTORIES = ("journal", "journal.new", "journal.broken")


async def orphan_shards(disk: Disk, data_directory: str, shards: int) -> list[int]:
    """Numbers of the shard directories from `shards` on, rising. Those whose removal has begun are none."""
    names = await names_in(disk, os.path.join(data_directory, "shards"))
    return sorted(int(name) for name in names if name.isdecimal() and int(name) >= shards)


async def remove_shard_directory(disk: Disk, faults: SyncFaults, data_directory: str, shard: int) -> None:
    """Remove a shard's journal and snapshot. Its log must be closed, and metadata must give it no partition.

    Renamed first: a crash leaves it whole, or under a name that remove_the_rest knows. One that is gone is fine.
    Raises StorageError.
    """
    parent = os.path.join(data_directory, "shards")
    await remove_the_rest(disk, faults, data_directory)
    if str(shard) not in await names_in(disk, parent):
        return
    doomed, since = os.path.join(parent, f"{shard}{REMOVED}"), faults.number
    await disk.rename(os.path.join(parent, str(shard)), doomed)
    await sync_directory_noted(disk, faults, parent, since)
    await _remove(disk, faults, doomed)


async def remove_the_rest(disk: Disk, faults: SyncFaults, data_directory: str) -> int:
    """Finish the removals that a crash has interrupted; gives how many."""
    parent = os.path.join(data_directory, "shards")
    doomed = [name for name in await names_in(disk, parent) if name.endswith(REMOVED)]
    for name in doomed:
        await _remove(disk, faults, os.path.join(parent, name))
    return len(doomed)


async def _remove(disk: Disk, faults: SyncFaults, directory: str) -> None:
    since = faults.number
    for name in await names_in(disk, directory):
        path = os.path.join(directory, name)
        if name in DIRECTORIES:
            for inner in await names_in(disk, path):
                await disk.unlink(os.path.join(path, inner))
            await sync_directory_noted(disk, faults, path, since)
            await disk.remove_directory(path)
        else:
            await disk.unlink(path)
    await sync_directory_noted(disk, faults, directory, since)
    await disk.remove_directory(directory)
    await sync_directory_noted(disk, faults, os.path.dirname(directory), since)
