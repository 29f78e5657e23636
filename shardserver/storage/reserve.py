"""Disk space kept back for what must work on a full disk: metadata, snapshots, the start.

A file of zeros that is given up at the first ENOSPC of such a write, and made again when there is room.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shardserver.errors import DiskFullError, StorageError
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage.disk import Disk
from shardserver.storage.synced_write import SyncFaults, sync_noted

log = logging.getLogger(__name__)

STEP_BYTES = 1 << 20
T = TypeVar("T")


def reserve_path(data_directory: str, shard: int) -> str:
    """Each shard has its own; that of shard 0 is the one that the supervisor may give up."""
    return os.path.join(data_directory, f"reserve.{shard}" if shard else "reserve")


class Reserve:
    """One file a shard. reserve_bytes 0: none is kept."""

    def __init__(self, disk: Disk, path: str, reserve_bytes: int, faults: SyncFaults | None = None) -> None:
        self._disk, self._path, self.reserve_bytes = disk, path, reserve_bytes
        self._faults = faults or SyncFaults()
        self.is_there = False

    async def find(self) -> None:
        """See whether it is there: a former start has left it, or the supervisor has given it up."""
        self.is_there = False
        if self.reserve_bytes:
            try:
                file = await self._disk.open(self._path)
            except StorageError:
                return
            self.is_there = await self._disk.file_bytes(file) >= self.reserve_bytes
            await self._disk.close(file)

    async def make(self) -> None:
        """Written, not only allocated: some filesystems promise room and break it. Without room there is none."""
        if self.is_there or not self.reserve_bytes:
            return
        try:
            await self._disk.unlink(self._path)
            file = await self._disk.open(self._path, create=True)
            try:
                since, zeros = self._faults.number, aligned_buffer(STEP_BYTES)
                for position in range(0, self.reserve_bytes, STEP_BYTES):
                    await self._disk.write(file, position, [zeros])
                await sync_noted(self._disk, self._faults, file, since)
            finally:
                await self._disk.close(file)
            self.is_there = True
        except StorageError as error:
            log.warning("no_reserve", extra={"fields": {"path": self._path, "error": str(error)}})
            await self._disk.unlink(self._path)

    async def with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work; when the disk is full, once more with the reserve given up."""
        try:
            return await work()
        except DiskFullError:
            if not self.is_there:
                raise
        self.is_there = False
        log.warning("reserve_given_up", extra={"fields": {"path": self._path, "bytes": self.reserve_bytes}})
        await self._disk.unlink(self._path)
        return await work()
