"""Segments of one partition that are deleted, until their files are gone for good."""

from __future__ import annotations

from collections import deque

from shardserver.storage.index import index_path
from shardserver.storage.resources import LogResources
from shardserver.storage.segment import Segment
from shardserver.storage.synced_write import sync_directory_noted


class DeletedSegments:
    """One removal at a time: the caller has a lock for it."""

    def __init__(self, resources: LogResources, directory: str) -> None:
        self._resources, self._directory = resources, directory
        self._left: deque[Segment] = deque()

    def __len__(self) -> int:
        return len(self._left)

    def add(self, segment: Segment) -> None:
        """Newer than those that are here."""
        self._left.append(segment)

    async def remove_files(self) -> None:
        """Oldest first, and none before the one before it is gone for good: one that is left would precede a gap.

        Raises StorageError; what is left then is tried again by the next call.
        """
        while self._left:
            await self._remove(self._left[0])
            self._left.popleft()

    async def _remove(self, segment: Segment) -> None:
        resources = self._resources
        resources.walks.forget(segment)
        await resources.files.close(segment)
        since = resources.faults.number
        await resources.disk.unlink(index_path(self._directory, segment.base_offset))
        await resources.disk.unlink(segment.path)
        await sync_directory_noted(resources.disk, resources.faults, self._directory, since)
