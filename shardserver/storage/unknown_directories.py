"""Partition directories that the metadata does not know: moved out of the way of later uids, never removed."""

from __future__ import annotations

import logging
import os
import re

from shardserver.storage.directory import names_in
from shardserver.storage.disk import Disk
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted

log = logging.getLogger(__name__)

# As ShardLog names them; anything else there is somebody else's and stays.
PARTITION_NAME = re.compile(r"[0-9a-f]{16}")


async def set_aside_unknown(disk: Disk, faults: SyncFaults, data_directory: str, known: set[int]) -> int:
    """Move them into DATA/set-aside; gives how many. known: uids that are live, or whose files are being removed.

    A uid that metadata gives out again (an old copy of its log was put back) would else meet their segments. Raises
    StorageError.
    """
    partitions, target = os.path.join(data_directory, "partitions"), os.path.join(data_directory, "set-aside")
    names = await names_in(disk, partitions)
    unknown = [name for name in names if PARTITION_NAME.fullmatch(name) and int(name, 16) not in known]
    if not unknown:
        return 0
    since = faults.number
    await disk.make_directory(target)
    taken = set(await disk.list_directory(target))
    for name in unknown:
        free = next(one for number in range(len(taken) + 1) if (one := f"{name}.{number}") not in taken)
        await disk.rename(os.path.join(partitions, name), os.path.join(target, free))
        log.error("directory_set_aside", extra={"fields": {"path": os.path.join(target, free)}})
    for directory in (target, partitions, data_directory):
        await sync_directory_noted(disk, faults, directory, since)
    return len(unknown)
