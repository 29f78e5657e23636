"""Operations on a submission and a completion queue that survive what a kernel may do: ring.pyx, to be read.

A turn of the loop collects submissions; one `io_uring_submit` sends them all. Completions arrive by a registered
eventfd, in any order. An operation ends when all that was asked for is done: a short transfer, EAGAIN, EINTR and a
cancelled linked sync are continued here (storage rule 20), so its future knows only whole success or failure.
"""

from __future__ import annotations

import asyncio
import errno
import os
from asyncio import Future
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardserver.errors import StorageError
from shardserver.io_uring.open_file import OpenFile
from shardserver.io_uring.queues import Queues
from shardserver.io_uring.threads import BLOCK_BYTES, IOV_MAX, storage_error
from shardserver.storage.disk import Ended

ENTRIES = 256
RETRY_S = 0.001  # the kernel was short of memory for entries
_REPEATED = (errno.EAGAIN, errno.EINTR)


@dataclass(slots=True, eq=False)
class Operation:
    """A transfer, a sync, or a transfer with a linked sync. `buffers` are what is left of it."""

    file: OpenFile
    position: int
    buffers: list[memoryview]
    outcome: Future[int] | None  # None: on_end is told
    is_read: bool = False
    sync: bool = False
    on_written: Callable[[], None] | None = None
    on_end: Ended | None = None
    left: int = 0
    moved: int = 0
    entries: int = 0
    awaited: int = 0  # completions of its entries
    skips: bool = False  # only its sync tells of it, or, when that was not started, its transfer
    dsync: bool = False  # its transfer is synced when it is told
    sync_result: int | None = None
    error: int = 0

    def advance(self, moved: int) -> None:
        """Step over what the kernel has taken; a direct file goes on at a whole block."""
        if self.file.direct and moved < self.left:
            moved -= moved % BLOCK_BYTES
        self.position += moved
        self.left -= moved
        self.moved += moved
        while self.buffers and moved >= len(self.buffers[0]):
            moved -= len(self.buffers.pop(0))
        if moved:
            self.buffers[0] = self.buffers[0][moved:]


class Ring:
    """Owned by one loop: made and used on it only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queues: Queues) -> None:
        """queues: with room for ENTRIES; the ring closes them."""
        self._loop = loop
        self._queues = queues
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._queues.register_eventfd(self._eventfd)
        loop.add_reader(self._eventfd, self._take_completions)
        self._waiting: deque[Operation] = deque()
        self._open: dict[int, Operation] = {}
        self._last_key = 0
        self.open_entries = 0
        self._submit_due = False
        self._idle: Future[None] | None = None
        self.submissions = 0

    @property
    def in_flight(self) -> int:
        """Operations that have not ended."""
        return len(self._open) + len(self._waiting)

    def write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        sync: bool,
        on_written: Callable[[], None] | None,
    ) -> Future[int]:
        """As Disk.write. Gives the bytes written."""
        kept = [memoryview(one) for one in buffers if len(one)]
        outcome = self._loop.create_future()
        return self._start(Operation(file, position, kept, outcome, False, sync, on_written), outcome)

    def start_synced_write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        on_written: Callable[[], None] | None,
        on_end: Ended,
    ) -> None:
        """As Disk.start_synced_write. The kernel has it, and all that waited before it, when this returns."""
        kept = [memoryview(one) for one in buffers if len(one)]
        operation = Operation(file, position, kept, None, False, True, on_written, on_end)
        operation.left = sum(map(len, kept))
        file.enter()
        self._waiting.append(operation)
        self._submit()

    def read(self, file: OpenFile, position: int, buffer: memoryview) -> Future[int]:
        """As Disk.read."""
        kept = [memoryview(buffer)] if len(buffer) else []
        outcome = self._loop.create_future()
        return self._start(Operation(file, position, kept, outcome, is_read=True), outcome)

    def sync(self, file: OpenFile) -> Future[int]:
        """As Disk.sync. Gives 0."""
        outcome = self._loop.create_future()
        return self._start(Operation(file, 0, [], outcome, sync=True), outcome)

    def _start(self, operation: Operation, outcome: Future[int]) -> Future[int]:
        """Queue an operation for this turn's submission."""
        operation.left = sum(map(len, operation.buffers))
        if operation.left or operation.sync:
            operation.file.enter()
            self._queue(operation)
        else:
            outcome.set_result(0)
        return outcome

    def _queue(self, operation: Operation) -> None:
        self._waiting.append(operation)
        if not self._submit_due:
            self._submit_due = True
            self._loop.call_soon(self._submit)

    def _submit(self) -> None:
        """Fill the submission queue from what waits. Never more open entries than half the completion queue."""
        self._submit_due = False
        filled = False
        while self._waiting and self.open_entries + 2 <= ENTRIES:
            self._fill(self._waiting.popleft())
            filled = True
        if filled:
            self.submissions += 1
            self._enter()

    def _enter(self) -> None:
        if self._queues.submit() > 0:
            self._loop.call_later(RETRY_S, self._enter)

    def _fill(self, operation: Operation) -> None:
        self._last_key += 1
        self._open[self._last_key] = operation
        operation.sync_result, operation.error = None, 0
        descriptor, transfer_key = operation.file.descriptor, self._last_key << 1
        synced = operation.sync and len(operation.buffers) <= IOV_MAX
        # Nobody wants to know of the middle: one entry where that is as durable, else a wake-up less. What moved before
        # is not synced by the rest's flag: a device may write that through, and keep the other in its cache.
        whole = synced and operation.left > 0 and not operation.on_written
        operation.dsync = whole and operation.file.dsync and operation.moved == 0
        linked = synced and not operation.dsync
        operation.skips = skips = whole and linked and self._queues.can_skip
        if operation.left and operation.is_read:
            self._queues.push_read(descriptor, operation.buffers[:IOV_MAX], operation.position, transfer_key)
        elif operation.left:
            parts = operation.buffers[:IOV_MAX]
            self._queues.push_write(descriptor, parts, operation.position, transfer_key, linked, skips, operation.dsync)
        if linked:
            self._queues.push_sync(descriptor, transfer_key | 1)
        operation.entries = bool(operation.left) + linked
        operation.awaited = operation.entries - skips
        self.open_entries += operation.entries

    def _take_completions(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        while self._queues.next_completion():
            self._complete_entry(self._queues.key, self._queues.result)
        if self._waiting and not self._submit_due:
            self._submit()
        if self._idle is not None and self.in_flight == 0 and not self._idle.done():
            self._idle.set_result(None)

    def _complete_entry(self, key: int, result: int) -> None:
        operation = self._open.get(key >> 1)
        if operation is None:  # a kernel that tells of the cancelled sync of a write that it has told of
            return
        operation.awaited -= 1
        if key & 1:
            operation.sync_result = result
            if operation.skips and result == -errno.ECANCELED and operation.left:  # what became of the write comes too
                operation.awaited += 1
            elif operation.skips:  # it was started, so all was written
                operation.advance(operation.left)
        else:
            self._take_transfer(operation, result)
        # Both entries of a link are awaited before anything is done again: the order of completions says nothing.
        if operation.awaited == 0:
            del self._open[key >> 1]
            self.open_entries -= operation.entries
            self._conclude(operation)

    def _take_transfer(self, operation: Operation, result: int) -> None:
        if result < 0:
            operation.error = 0 if -result in _REPEATED else -result
            return
        before = operation.left
        if result > before:
            operation.error = errno.EIO  # more than was asked for: no kernel says that, and the rest is unknown
            return
        at_end = operation.is_read and (result == 0 or (operation.file.direct and result % BLOCK_BYTES != 0))
        if at_end:
            operation.moved += result
            operation.left = 0
            return
        operation.advance(result)
        if operation.left == before:
            operation.error = errno.EIO  # the device took no whole block: trying again would never end
        elif operation.left == 0 and operation.dsync:
            operation.sync_result = 0
        elif operation.left == 0 and operation.on_written is not None:
            operation.on_written()

    def _conclude(self, operation: Operation) -> None:
        sync_result = operation.sync_result
        error = operation.error
        if not error and operation.sync and sync_result is not None and sync_result < 0:
            repeated = -sync_result in _REPEATED or -sync_result == errno.ECANCELED
            error = 0 if repeated else -sync_result
        if not error and (operation.left or (operation.sync and sync_result != 0)):
            self._queue(operation)
            return
        operation.file.leave()  # also when nobody waits for the outcome any more
        outcome = operation.outcome
        if outcome is None:
            self._tell(operation, error)
        elif outcome.done():  # cancelled: needs no answer
            pass
        elif error:
            outcome.set_exception(_failure_of(operation, error))
        else:
            outcome.set_result(operation.moved)

    def _tell(self, operation: Operation, error: int) -> None:
        assert operation.on_end is not None
        try:
            operation.on_end(_failure_of(operation, error) if error else None)
        except Exception as bug:  # others in this round have to hear of theirs
            self._loop.call_exception_handler({"message": "the end of a write was not taken", "exception": bug})

    async def close(self) -> None:
        """Wait until nothing is in flight, then give the ring back."""
        if self.in_flight:
            self._idle = self._loop.create_future()
            await self._idle
        self._loop.remove_reader(self._eventfd)
        self._queues.close()
        os.close(self._eventfd)


def _failure_of(operation: Operation, error: int) -> StorageError:
    what = "sync" if not operation.error else "read" if operation.is_read else "write"
    return storage_error(OSError(error, os.strerror(error)), f"{what} {operation.file.path}")
