"""Directories: what is in one, and one with a name that lasts."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence

from shardserver.errors import StorageError
from shardserver.storage.disk import ALL, Act, Disk, Step
from shardserver.storage.synced_write import SyncFaults, do_steps_noted, sync_directory_noted

SYNCED_TOGETHER = 256


async def names_in(disk: Disk, directory: str) -> list[str]:
    """Sorted; none when there is no such directory. Raises StorageError."""
    try:
        return await disk.list_directory(directory)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


async def rename_synced(disk: Disk, faults: SyncFaults, path: str, target: str) -> None:
    """Within one directory. Raises StorageError: it has its former name again; a sync of the directory has to say so
    before what it holds is changed.

    Else a later start, or try, would find the new name, and not know that the failed sync had dropped it (rule 20).
    """
    since = faults.number
    await disk.rename(path, target)
    try:
        await sync_directory_noted(disk, faults, os.path.dirname(path), since)
    except StorageError:
        await disk.rename(target, path)
        raise


async def sync_directories_noted(disk: Disk, faults: SyncFaults, directories: Sequence[str]) -> None:
    """Make the names in many directories durable, SYNCED_TOGETHER by each thread of the disk. Raises StorageError."""
    starts = range(0, len(directories), SYNCED_TOGETHER)
    groups = [directories[start : start + SYNCED_TOGETHER] for start in starts]
    for errors in await asyncio.gather(*(_sync_group(disk, faults, one) for one in groups)):
        for error in filter(None, errors):
            raise error


async def _sync_group(disk: Disk, faults: SyncFaults, directories: Sequence[str]) -> list[StorageError | None]:
    steps = [Step(Act.SYNC_DIRECTORY, chain, one) for chain, one in enumerate(directories)]
    errors, _ = await do_steps_noted(disk, faults, len(directories), steps)
    return errors


async def make_synced_directories(
    disk: Disk, faults: SyncFaults, directories: Sequence[str]
) -> list[StorageError | None]:
    """The name of each is durable when this returns, or gives an error: nothing may be put into it yet.

    An empty one is made anew: of a name that a failed sync has dropped, here or in a process before this one, no later
    sync says more than that it is there (rule 20).
    """
    steps: list[Step] = []
    for chain, directory in enumerate(directories):
        steps.append(Step(Act.REMOVE_DIRECTORY, chain, directory))
        steps.append(Step(Act.MAKE_DIRECTORY, chain, directory))
    parents = dict.fromkeys(os.path.dirname(one) for one in directories)
    steps += [Step(Act.SYNC_DIRECTORY, ALL, one) for one in parents]
    errors, _ = await do_steps_noted(disk, faults, len(directories), steps)
    return errors


async def make_synced_directory(disk: Disk, faults: SyncFaults, directory: str) -> None:
    """As make_synced_directories, of one. Raises StorageError."""
    for error in await make_synced_directories(disk, faults, [directory]):
        if error is not None:
            raise error
