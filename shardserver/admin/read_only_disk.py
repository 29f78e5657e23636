"""A Disk that changes nothing: files are opened for reading, and every call that would change something fails."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any

from shardserver.errors import StorageError
from shardserver.io_uring.open_file import OpenFile
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.disk import GroupWrite


class ReadOnlyDisk(ThreadDisk):
    """Works on a file system that is mounted read-only, too. Its locks are shared: they wait for late writers only.

    What is still open when it is shut down is closed then: a reader that refuses a file leaves it open, with its lock.
    """

    name = "read-only"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._open: set[OpenFile] = set()

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future[OpenFile]:
        if create:
            return _refused(f"create {path}")
        opening = self._run(f"open {path}", lambda: _open(path, direct=direct, lock=lock))
        opening.add_done_callback(self._keep)
        return opening

    def _keep(self, opened: Future[OpenFile]) -> None:
        if not opened.cancelled() and opened.exception() is None:
            self._open.add(opened.result())

    def close(self, file: OpenFile) -> Future[None]:
        self._open.discard(file)
        return super().close(file)

    async def _shut_down(self) -> None:
        for file in list(self._open):
            await self.close(file)
        await super().shut_down()

    def shut_down(self) -> Future[None]:
        return asyncio.ensure_future(self._shut_down())

    def write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[None]:
        return _refused(f"write {file.path}")

    def write_group(self, writes: Sequence[GroupWrite]) -> Future[list[StorageError | None]]:
        return _refused("write")

    def sync(self, file: OpenFile) -> Future[None]:
        return _refused(f"sync {file.path}")

    def truncate(self, file: OpenFile, length: int) -> Future[None]:
        return _refused(f"truncate {file.path}")

    def make_directory(self, path: str) -> Future[None]:
        return _refused(f"make {path}")

    def rename(self, source: str, target: str) -> Future[None]:
        return _refused(f"rename {source}")

    def unlink(self, path: str) -> Future[None]:
        return _refused(f"remove {path}")

    def remove_directory(self, path: str) -> Future[None]:
        return _refused(f"remove {path}")

    def sync_directory(self, path: str) -> Future[None]:
        return _refused(f"sync {path}")

    def sync_directories(self, paths: Sequence[str]) -> Future[list[StorageError | None]]:
        return _refused("sync directories")


def _refused(what: str) -> Future[Any]:
    outcome: Future[Any] = asyncio.get_running_loop().create_future()
    outcome.set_exception(StorageError(f"{what}: this command only reads", errno=errno.EROFS))
    return outcome


def _open(path: str, *, direct: bool, lock: bool) -> OpenFile:
    flags, is_direct = os.O_RDONLY | os.O_CLOEXEC, direct
    try:
        descriptor = os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        if error.errno != errno.EINVAL or not direct:
            raise
        descriptor, is_direct = os.open(path, flags), False
    if lock:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return OpenFile(path, is_direct, descriptor)
