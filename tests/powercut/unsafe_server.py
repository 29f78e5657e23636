"""The server on a disk engine that writes through the page cache and never syncs: the control of the power-cut test.

Started as `python -m tests.powercut.unsafe_server`. The shard's process imports this module again as its main one
(multiprocessing, spawn), so the engine is replaced there too.
"""

from __future__ import annotations

import sys
from asyncio import Future
from collections.abc import Callable, Sequence

import shardserver.server
from shardserver.cli.main import main
from shardserver.errors import StorageError
from shardserver.io_uring.threads import OpenFile, ThreadDisk, write_whole
from shardserver.storage.disk import GroupWrite


class UnsafeDisk(ThreadDisk):
    """Says yes to every sync and does none."""

    name = "unsafe"

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future[OpenFile]:
        return super().open(path, create=create, direct=False, lock=lock)

    def write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[None]:
        return super().write(file, position, buffers, on_written=on_written)

    def write_group(self, writes: Sequence[GroupWrite]) -> Future[list[StorageError | None]]:
        def work() -> list[StorageError | None]:
            for file, position, buffers in writes:
                write_whole(file, position, buffers)
            return [None] * len(writes)

        return self._run("write, no sync", work)

    def sync(self, file: OpenFile) -> Future[None]:
        return self._run("no sync", lambda: None)

    def sync_directory(self, path: str) -> Future[None]:
        return self._run("no sync", lambda: None)

    def sync_directories(self, paths: Sequence[str]) -> Future[list[StorageError | None]]:
        return self._run("no sync", lambda: [None] * len(paths))


shardserver.server.open_disk = lambda kind: UnsafeDisk()

if __name__ == "__main__":
    sys.exit(main())
