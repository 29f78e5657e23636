"""Where a repair keeps what it takes away: `DATA/set-aside/repair.<n>`, each file under the path that it had."""

from __future__ import annotations

import itertools
import os

from shardserver.storage.directory import make_synced_directory
from shardserver.storage.disk import Disk
from shardserver.storage.synced_write import SyncFaults


class Kept:
    """One repair's directory; it is made when something is first kept."""

    def __init__(self, disk: Disk, data: str) -> None:
        self._disk, self._data = disk, data
        self.directory = ""
        self._made = {data}

    async def place(self, path: str) -> str:
        """The path under which what stands at `path` is to be kept. Its directories are there and synced."""
        if not self.directory:
            parent = os.path.join(self._data, "set-aside")
            numbers = (os.path.join(parent, f"repair.{number}") for number in itertools.count())
            self.directory = next(one for one in numbers if not os.path.exists(one))
        target = os.path.join(self.directory, os.path.relpath(path, self._data))
        await self._make_parents(os.path.dirname(target))
        return target

    async def _make_parents(self, directory: str) -> None:
        if directory in self._made:
            return
        await self._make_parents(os.path.dirname(directory))
        await make_synced_directory(self._disk, SyncFaults(), directory)
        self._made.add(directory)

    async def move(self, path: str) -> str:
        """Away from its place, to be kept; gives where."""
        target = await self.place(path)
        await self._disk.rename(path, target)
        await self._disk.sync_directory(os.path.dirname(target))
        await self._disk.sync_directory(os.path.dirname(path))
        return target

    async def link(self, path: str) -> str:
        """A second name of the same file, so that the first one can be replaced; gives the second."""
        target = await self.place(path)
        os.link(path, target)
        await self._disk.sync_directory(os.path.dirname(target))
        return target

    async def write(self, path: str, raw: bytes | memoryview) -> str:
        """Bytes that are about to be overwritten in the file at `path`; gives where they are."""
        target = await self.place(path)
        with open(target, "xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        await self._disk.sync_directory(os.path.dirname(target))
        return target
