"""A submission and a completion queue: a thin binding on the system's liburing.

Ours, because the wheel of the `liburing` package (2026.3.30) is compiled for AVX-512 and ends the process with SIGILL
on a processor without it. A binding has no twin: what it does is in liburing's manual pages.
"""

import errno
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.errno cimport EBADF

cdef enum:
    SINGLE_BYTES = 1 << 30  # one entry moves less than 2 GiB, and a short one would cancel what is linked to it


def _raise(int result, str what):
    raise OSError(-result, f"{what}: {os.strerror(-result)}")


cdef class Queues:
    """Owned by one thread. Buffers and descriptors belong to the caller, who keeps them until their completion.

    key, result: of the completion that was taken last; a result below 0 is -errno. A subclass that does not call
    __init__ and overrides what a Ring calls stands in for the kernel (tests/io_uring/test_ring.py).
    """

    def __cinit__(self):
        self._vectors = []

    def __init__(self, unsigned entries):
        self.close()
        # Completions need no interrupt of a busy loop: it looks at them at its next entry into the kernel.
        cdef int result = io_uring_queue_init(entries, &self._ring, IORING_SETUP_COOP_TASKRUN)
        if result == -errno.EINVAL:  # a kernel before 5.19
            result = io_uring_queue_init(entries, &self._ring, 0)
        if result < 0:
            _raise(result, "io_uring_queue_init")
        self.can_skip = bool(self._ring.features & IORING_FEAT_CQE_SKIP)
        self._open = True

    def __dealloc__(self):
        if self._open:
            io_uring_queue_exit(&self._ring)

    cpdef close(self):
        """Give the ring back; a second time is fine. What is in flight must have completed."""
        if self._open:
            self._open = False
            io_uring_queue_exit(&self._ring)

    def missing_operations(self):
        """Names of the operations we need that this kernel does not have."""
        cdef io_uring_probe* probe = io_uring_get_probe_ring(&self._ring)
        if probe == NULL:
            return ["IORING_REGISTER_PROBE"]
        if not self._ring.features & IORING_FEAT_SUBMIT_STABLE:
            return ["IORING_FEAT_SUBMIT_STABLE"]
        needed = [
            ("IORING_OP_READ", IORING_OP_READ),
            ("IORING_OP_WRITE", IORING_OP_WRITE),
            ("IORING_OP_READV", IORING_OP_READV),
            ("IORING_OP_WRITEV", IORING_OP_WRITEV),
            ("IORING_OP_FSYNC", IORING_OP_FSYNC),
        ]
        missing = [name for name, code in needed if not io_uring_opcode_supported(probe, code)]
        io_uring_free_probe(probe)
        return missing

    cpdef register_eventfd(self, int descriptor):
        """Have each completion signal this eventfd."""
        cdef int result = io_uring_register_eventfd(&self._ring, descriptor)
        if result < 0:
            _raise(result, "io_uring_register_eventfd")

    cdef io_uring_sqe* _entry(self) except NULL:
        cdef io_uring_sqe* entry = io_uring_get_sqe(&self._ring) if self._open else NULL
        if entry == NULL:
            raise OSError(errno.EBUSY, "the submission queue is full" if self._open else "the ring is closed")
        return entry

    cdef iovec* _vector(self, list buffers, int access) except NULL:
        """The iovec array, in memory that Python counts. Each address stays good as long as its memoryview lives."""
        cdef bytearray vector = bytearray(len(buffers) * sizeof(iovec))
        cdef iovec* parts = <iovec*>PyByteArray_AS_STRING(vector)
        cdef Py_ssize_t number
        for number in range(len(buffers)):
            parts[number] = part_of(buffers[number], access)
        self._vectors.append(vector)
        return parts

    cpdef push_read(self, int descriptor, list buffers, uint64_t position, uint64_t key):
        """Queue a read into writable memoryviews."""
        cdef iovec one
        cdef bint single = len(buffers) == 1
        if single:
            one = part_of(buffers[0], PyBUF_WRITABLE)
            single = one.iov_len <= SINGLE_BYTES
        cdef iovec* parts = NULL if single else self._vector(buffers, PyBUF_WRITABLE)
        cdef io_uring_sqe* entry = self._entry()
        if single:
            io_uring_prep_read(entry, descriptor, one.iov_base, <unsigned>one.iov_len, position)
        else:
            io_uring_prep_readv(entry, descriptor, parts, <unsigned>len(buffers), position)
        entry.user_data = key

    cpdef push_write(
        self, int descriptor, list buffers, uint64_t position, uint64_t key, bint link, bint skip, bint dsync
    ):
        """Queue a write. link: the next entry starts once this one was taken whole, else it is cancelled.

        skip (where can_skip is true): no completion of a write that was taken whole; and when it was not, none of the
        entry linked to it. dsync: with RWF_DSYNC (open_file.honours_dsync).
        """
        cdef iovec one
        cdef bint single = len(buffers) == 1
        if single:
            one = part_of(buffers[0], PyBUF_SIMPLE)
            single = one.iov_len <= SINGLE_BYTES
        cdef iovec* parts = NULL if single else self._vector(buffers, PyBUF_SIMPLE)
        cdef io_uring_sqe* entry = self._entry()
        if single:
            io_uring_prep_write(entry, descriptor, one.iov_base, <unsigned>one.iov_len, position)
        else:
            io_uring_prep_writev(entry, descriptor, parts, <unsigned>len(buffers), position)
        entry.user_data = key
        if link:
            entry.flags |= IOSQE_IO_LINK
        if skip:
            entry.flags |= IOSQE_CQE_SKIP_SUCCESS
        if dsync:
            entry.rw_flags = RWF_DSYNC

    cpdef push_sync(self, int descriptor, uint64_t key):
        """Queue an fdatasync."""
        cdef io_uring_sqe* entry = self._entry()
        io_uring_prep_fsync(entry, descriptor, IORING_FSYNC_DATASYNC)
        entry.user_data = key

    cpdef unsigned submit(self) except? 0xFFFFFFFF:
        """Hand all queued entries to the kernel; gives how many it left queued (no memory, or a signal): try again."""
        cdef int result = io_uring_submit(&self._ring) if self._open else -EBADF
        cdef unsigned left
        if result < 0 and -result not in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
            _raise(result, "io_uring_submit")
        left = io_uring_sq_ready(&self._ring)
        if left == 0 and self._vectors:
            self._vectors.clear()  # what the kernel has taken it has copied (IORING_FEAT_SUBMIT_STABLE)
        return left

    cpdef bint next_completion(self) except -1:
        """Take a completion, in the kernel's order, into key and result. False: there is none."""
        cdef io_uring_cqe* entry
        if not self._open or io_uring_peek_batch_cqe(&self._ring, &entry, 1) == 0:
            return False
        self.key, self.result = entry.user_data, entry.res
        io_uring_cq_advance(&self._ring, 1)
        return True


cdef iovec part_of(object buffer, int access) except *:
    """Where the bytes of a buffer are."""
    cdef Py_buffer view
    cdef iovec part
    PyObject_GetBuffer(buffer, &view, access)
    part.iov_base, part.iov_len = view.buf, <size_t>view.len
    PyBuffer_Release(&view)
    return part


def unsupported_reason():
    """Why this process cannot use io_uring; empty when it can. Asks the kernel, never its version."""
    try:
        queues = Queues(4)
    except OSError as error:
        return str(error)
    missing = queues.missing_operations()
    queues.close()
    return f"the kernel lacks {', '.join(missing)}" if missing else ""
