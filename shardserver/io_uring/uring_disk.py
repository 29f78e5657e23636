"""A Disk on io_uring: reads, writes and syncs on the ring, names and descriptors on a few threads.

open, truncate, unlink and their like would run in the kernel's worker threads anyway, or block the loop (storage rule
28), so they stay where ThreadDisk has them. Contract: storage/disk.py.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any

from shardserver.io_uring.queues import Queues
from shardserver.io_uring.ring import ENTRIES, Ring
from shardserver.io_uring.threads import OpenFile, ThreadDisk
from shardserver.storage.disk import Ended


class UringDisk(ThreadDisk):
    """The ring is made at the first use, on the loop that then owns it."""

    name = "io_uring"

    def __init__(self) -> None:
        super().__init__()
        self._ring: Ring | None = None

    def _make_ring(self) -> Ring:
        self._ring = Ring(asyncio.get_running_loop(), Queues(ENTRIES))
        return self._ring

    def write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[Any]:
        ring = self._ring or self._make_ring()
        return ring.write(file, position, buffers, sync, on_written)

    def start_synced_write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        on_written: Callable[[], None] | None,
        on_end: Ended,
    ) -> None:
        ring = self._ring or self._make_ring()
        ring.start_synced_write(file, position, buffers, on_written, on_end)

    def read(self, file: OpenFile, position: int, buffer: memoryview) -> Future[int]:
        ring = self._ring or self._make_ring()
        return ring.read(file, position, buffer)

    def sync(self, file: OpenFile) -> Future[Any]:
        ring = self._ring or self._make_ring()
        return ring.sync(file)

    def shut_down(self) -> Future[None]:
        return asyncio.ensure_future(self._shut_down())

    async def _shut_down(self) -> None:
        if self._ring is not None:
            await self._ring.close()
        await super().shut_down()
