"""Operations on a submission and a completion queue that survive what a kernel may do. Twin: ring_python.py.

The twin is the specification, and says why each step is as it is. Here no step runs Python code but the making of a
future, the giving of its result, and what the caller asked to be called.
"""

import os
from collections import deque

cimport cython
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from libc.errno cimport EAGAIN, EINTR, EIO, errno
from posix.unistd cimport read

from shardserver.io_uring.threads import storage_error

cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef enum:
    ROOM = 256
    BLOCK = 4096
    VECTORS = 1024  # IOV_MAX
    NOT_SYNCED = 1  # no sync gives it

ENTRIES = ROOM
RETRY_S = 0.001  # the kernel was short of memory for entries


cdef inline bint is_repeated(int result) noexcept:
    return result == -EAGAIN or result == -EINTR


cdef inline Py_ssize_t size_of(object view) noexcept:
    return PyMemoryView_GET_BUFFER(view).len


@cython.final
@cython.freelist(16)
cdef class Operation:
    """A transfer, a sync, or a transfer with a linked sync. `buffers` are what is left of it: memoryviews of ours."""

    cdef int keep(self, object buffer) except -1:
        """Add a buffer that is not empty."""
        cdef object view = PyMemoryView_FromObject(buffer)
        cdef Py_ssize_t size = size_of(view)
        if size:
            self.buffers.append(view)
            self.left += size
        return 0

    cdef int advance(self, Py_ssize_t moved) except -1:
        """Step over what the kernel has taken; a direct file goes on at a whole block."""
        if self.file.direct and moved < self.left:
            moved -= moved % BLOCK
        self.position += <uint64_t>moved
        self.left -= moved
        self.moved += moved
        while self.buffers and moved >= size_of(self.buffers[0]):
            moved -= size_of(self.buffers.pop(0))
        if moved:
            self.buffers[0] = self.buffers[0][moved:]
        return 0


@cython.final
cdef class Ring:
    """Owned by one loop: made and used on it only."""

    def __init__(self, loop, Queues queues not None):
        """queues: with room for ENTRIES; the ring closes them."""
        self._loop = loop
        self._queues = queues
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        queues.register_eventfd(self._eventfd)
        loop.add_reader(self._eventfd, self._take_completions)
        self._waiting = deque()
        self._open = {}

    @property
    def in_flight(self):
        """Operations that have not ended."""
        return len(self._open) + len(self._waiting)

    def write(self, OpenFile file not None, uint64_t position, buffers, bint sync, on_written):
        """As Disk.write. Gives the bytes written."""
        cdef Operation operation = make_operation(file, position, self._loop.create_future())
        for buffer in buffers:
            operation.keep(buffer)
        operation.sync, operation.on_written = sync, on_written
        return self._start(operation)

    def start_synced_write(self, OpenFile file not None, uint64_t position, buffers, on_written, on_end):
        """As Disk.start_synced_write. The kernel has it, and all that waited before it, when this returns."""
        cdef Operation operation = make_operation(file, position, None)
        for buffer in buffers:
            operation.keep(buffer)
        operation.sync, operation.on_written, operation.on_end = True, on_written, on_end
        file.enter()
        self._waiting.append(operation)
        self._submit()

    def read(self, OpenFile file not None, uint64_t position, buffer):
        """As Disk.read."""
        cdef Operation operation = make_operation(file, position, self._loop.create_future())
        operation.keep(buffer)
        operation.is_read = True
        return self._start(operation)

    def sync(self, OpenFile file not None):
        """As Disk.sync. Gives 0."""
        cdef Operation operation = make_operation(file, 0, self._loop.create_future())
        operation.sync = True
        return self._start(operation)

    cdef object _start(self, Operation operation):
        """Queue an operation for this turn's submission."""
        if operation.left or operation.sync:
            operation.file.enter()
            self._queue(operation)
        else:
            operation.outcome.set_result(0)
        return operation.outcome

    cdef int _queue(self, Operation operation) except -1:
        self._waiting.append(operation)
        if not self._submit_due:
            self._submit_due = True
            self._loop.call_soon(self._submit)
        return 0

    def _submit(self):
        """Fill the submission queue from what waits. Never more open entries than half the completion queue."""
        cdef bint filled = False
        self._submit_due = False
        while self._waiting and self.open_entries + 2 <= ROOM:
            self._fill(self._waiting.popleft())
            filled = True
        if filled:
            self.submissions += 1
            self._enter()

    def _enter(self):
        if self._queues.submit() > 0:
            self._loop.call_later(RETRY_S, self._enter)

    cdef int _fill(self, Operation operation) except -1:
        cdef list parts = operation.buffers
        cdef bint moves = operation.left > 0, synced = operation.sync and len(parts) <= VECTORS
        cdef bint whole = synced and moves and operation.on_written is None, linked
        cdef int descriptor = operation.file.descriptor
        cdef uint64_t transfer_key
        self._last_key += 1
        self._open[self._last_key] = operation
        transfer_key = self._last_key << 1
        operation.sync_result, operation.error = NOT_SYNCED, 0
        operation.dsync = whole and operation.file.dsync and operation.moved == 0
        linked = synced and not operation.dsync
        operation.skips = whole and linked and self._queues.can_skip
        if len(parts) > VECTORS:
            parts = parts[:VECTORS]
        if moves and operation.is_read:
            self._queues.push_read(descriptor, parts, operation.position, transfer_key)
        elif moves:
            self._queues.push_write(
                descriptor, parts, operation.position, transfer_key, linked, operation.skips, operation.dsync
            )
        if linked:
            self._queues.push_sync(descriptor, transfer_key | 1)
        operation.entries = <int>moves + <int>linked
        operation.awaited = operation.entries - <int>operation.skips
        self.open_entries += operation.entries
        return 0

    def _take_completions(self):
        cdef uint64_t signals
        if read(self._eventfd, &signals, sizeof(signals)) < 0:
            if errno == EAGAIN or errno == EINTR:  # the loop calls again while it is readable
                return
            raise OSError(errno, os.strerror(errno))
        while self._queues.next_completion():
            self._complete_entry(self._queues.key, self._queues.result)
        if self._waiting and not self._submit_due:
            self._submit()
        if self._idle is not None and not self._open and not self._waiting and not self._idle.done():
            self._idle.set_result(None)

    cdef int _complete_entry(self, uint64_t key, int result) except -1:
        found = self._open.get(key >> 1)
        if found is None:  # a kernel that tells of the cancelled sync of a write that it has told of
            return 0
        cdef Operation operation = <Operation>found
        operation.awaited -= 1
        if key & 1:
            operation.sync_result = result
            if operation.skips and result == -ECANCELED and operation.left:  # what became of the write comes too
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
        return 0

    cdef int _take_transfer(self, Operation operation, int result) except -1:
        cdef Py_ssize_t before = operation.left
        if result < 0:
            operation.error = 0 if is_repeated(result) else -result
        elif result > before:
            operation.error = EIO  # more than was asked for: no kernel says that, and the rest is unknown
        elif operation.is_read and (result == 0 or (operation.file.direct and result % BLOCK != 0)):  # the file's end
            operation.moved += result
            operation.left = 0
        else:
            operation.advance(result)
            if operation.left == before:
                operation.error = EIO  # the device took no whole block: trying again would never end
            elif operation.left == 0 and operation.dsync:
                operation.sync_result = 0
            elif operation.left == 0 and operation.on_written is not None:
                operation.on_written()
        return 0

    cdef int _conclude(self, Operation operation) except -1:
        cdef int sync_result = operation.sync_result, error = operation.error
        if error == 0 and operation.sync and sync_result < 0:
            error = 0 if is_repeated(sync_result) or sync_result == -ECANCELED else -sync_result
        if error == 0 and (operation.left or (operation.sync and sync_result != 0)):
            return self._queue(operation)
        operation.file.leave()  # also when nobody waits for the outcome any more
        if operation.on_end is not None:
            self._tell(operation, error)
        elif operation.outcome.done():  # cancelled: needs no answer
            pass
        elif error == 0:
            operation.outcome.set_result(operation.moved)
        else:
            operation.outcome.set_exception(failure_of(operation, error))
        return 0

    cdef int _tell(self, Operation operation, int error) except -1:
        on_end, operation.on_end = operation.on_end, None
        try:
            on_end(failure_of(operation, error) if error else None)
        except Exception as bug:  # others in this round have to hear of theirs
            self._loop.call_exception_handler({"message": "the end of a write was not taken", "exception": bug})
        return 0

    async def close(self):
        """Wait until nothing is in flight, then give the ring back."""
        if self._open or self._waiting:
            self._idle = self._loop.create_future()
            await self._idle
        self._loop.remove_reader(self._eventfd)
        self._queues.close()
        os.close(self._eventfd)


cdef object failure_of(Operation operation, int error):
    what = "sync" if not operation.error else "read" if operation.is_read else "write"
    return storage_error(OSError(error, os.strerror(error)), f"{what} {operation.file.path}")


cdef Operation make_operation(OpenFile file, uint64_t position, object outcome):
    cdef Operation operation = Operation.__new__(Operation)
    operation.file, operation.position, operation.outcome = file, position, outcome
    operation.buffers = []
    return operation
