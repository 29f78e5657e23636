"""The data directory of a stopped server, held by its lock for as long as a command works on it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from shardserver.admin.read_only_disk import ReadOnlyDisk
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.disk import Disk
from shardserver.supervisor.data_directory import DataDirectory

THREADS = 2


@contextlib.asynccontextmanager
async def read_stopped(path: str) -> AsyncIterator[tuple[Disk, str]]:
    """(a disk that changes nothing, the absolute path). Raises ConfigError: a server runs, or there is no data."""
    data = DataDirectory(path)
    data.open_unchanged()
    disk = ReadOnlyDisk(THREADS)
    try:
        yield disk, data.path
    finally:
        await disk.shut_down()
        data.close_unchanged()


@contextlib.asynccontextmanager
async def change_stopped(path: str) -> AsyncIterator[tuple[Disk, str]]:
    """As read_stopped, with a disk that writes."""
    data = DataDirectory(path)
    data.open(require_data=True)
    disk = ThreadDisk(THREADS)
    try:
        yield disk, data.path
    finally:
        await disk.shut_down()
        data.close()
