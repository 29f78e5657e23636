"""A write that counts only if no sync of the shard failed meanwhile (storage rule 20).

A failed sync of any file may have dropped what other files had not synced yet, and their own later syncs succeed all
the same. So each write remembers the number of failures at its start, and is made again, the same bytes at the same
position, when that number has changed: nothing of it was acknowledged before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardserver.errors import StorageError
from shardserver.storage.disk import Disk, File


@dataclass(slots=True)
class SyncFaults:
    """How many synced writes of a shard have failed, in any of its files."""

    number: int = 0


async def write_synced(
    disk: Disk,
    faults: SyncFaults,
    file: File,
    position: int,
    buffer: memoryview,
    on_written: Callable[[], None] | None = None,
) -> None:
    """Write and fdatasync, so that it is durable afterwards. Raises StorageError: its fate is unknown."""
    while True:
        before = faults.number
        try:
            await disk.write(file, position, [buffer], sync=True, on_written=on_written)
        except StorageError:
            faults.number += 1
            raise
        if faults.number == before:
            return
