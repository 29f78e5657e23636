"""A Disk on io_uring: reads, writes and syncs on the ring, names and descriptors on a few threads.

open, truncate, unlink and their like would run in the kernel's worker threads anyway, or block the loop (storage rule
28), so they stay where ThreadDisk has them. Contract: storage/disk.py.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import Future
from collections.abc import Callable, Sequence

from shardserver.io_uring.ring import Operation, Ring, make_operation
from shardserver.io_uring.threads import OpenFile, ThreadDisk


class UringDisk(ThreadDisk):
    """The ring is made at the first use, on the loop that then owns it."""

    name = "io_uring"

    def __init__(self) -> None:
        super().__init__(threads=4)
        self._ring: Ring | None = None
        self._busy: dict[OpenFile, set[Future[int]]] = {}

    def _start(self, operation: Operation) -> Future[int]:
        if self._ring is None:
            self._ring = Ring(asyncio.get_running_loop())
        busy = self._busy.setdefault(operation.file, set())
        busy.add(operation.outcome)
        operation.outcome.add_done_callback(busy.discard)
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

    def close(self, file: OpenFile) -> Future[None]:
        return asyncio.ensure_future(self._close_when_idle(file))

    async def _close_when_idle(self, file: OpenFile) -> None:
        busy = self._busy.pop(file, set())
        if busy:
            await asyncio.wait(busy)
        await self._run(f"close {file.path}", lambda: os.close(file.descriptor))

    def shut_down(self) -> Future[None]:
        return asyncio.ensure_future(self._shut_down())

    async def _shut_down(self) -> None:
        if self._ring is not None:
            await self._ring.close()
        await super().shut_down()
