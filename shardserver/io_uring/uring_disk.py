"""A Disk on io_uring: reads, writes and syncs on the ring, names and descriptors on a few threads.

open, truncate, unlink and their like would run in the kernel's worker threads anyway, or block the loop (storage rule
28), so they stay where ThreadDisk has them. Contract: storage/disk.py.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Sequence
from functools import partial

from shardserver.io_uring.ring import Operation, Ring, make_operation
from shardserver.io_uring.threads import OpenFile, ThreadDisk


class UringDisk(ThreadDisk):
    """The ring is made at the first use, on the loop that then owns it."""

    name = "io_uring"

    def __init__(self) -> None:
        super().__init__(threads=4)
        self._ring: Ring | None = None

    def _start(self, operation: Operation) -> Future[int]:
        if self._ring is None:
            self._ring = Ring(asyncio.get_running_loop())
        self._enter(operation.file)
        operation.on_end = partial(self._leave, operation.file)
        self._ring.start(operation)
        return operation.outcome

    def write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[None]:
        outcome = asyncio.get_running_loop().create_future()
        self._start(make_operation(file, position, buffers, outcome, sync=sync, on_written=on_written))
        return outcome

    def read(self, file: OpenFile, position: int, buffer: memoryview) -> Future[int]:
        outcome = asyncio.get_running_loop().create_future()
        return self._start(make_operation(file, position, [buffer], outcome, is_read=True))

    def sync(self, file: OpenFile) -> Future[None]:
        outcome = asyncio.get_running_loop().create_future()
        self._start(make_operation(file, 0, [], outcome, sync=True))
        return outcome

    def shut_down(self) -> Future[None]:
        return asyncio.ensure_future(self._shut_down())

    async def _shut_down(self) -> None:
        if self._ring is not None:
            await self._ring.close()
        await super().shut_down()
