"""The ring for cimport. Docstrings in ring.pyx, reasons in ring_python.py."""

from libc.stdint cimport uint64_t

from shardserver.io_uring.open_file cimport OpenFile
from shardserver.io_uring.queues cimport Queues


cdef class Operation:
    cdef OpenFile file
    cdef uint64_t position
    cdef list buffers
    cdef object outcome
    cdef object on_written
    cdef object on_end
    cdef bint is_read
    cdef bint sync
    cdef bint skips
    cdef bint dsync
    cdef Py_ssize_t left
    cdef Py_ssize_t moved
    cdef int entries
    cdef int awaited
    cdef int sync_result
    cdef int error

    cdef int keep(self, object buffer) except -1
    cdef int advance(self, Py_ssize_t moved) except -1


cdef class Ring:
    cdef object _loop
    cdef Queues _queues
    cdef object _waiting
    cdef dict _open
    cdef object _idle
    cdef int _eventfd
    cdef uint64_t _last_key
    cdef bint _submit_due
    cdef readonly int open_entries
    cdef readonly uint64_t submissions

    cdef object _start(self, Operation operation)
    cdef int _queue(self, Operation operation) except -1
    cdef int _fill(self, Operation operation) except -1
    cdef int _complete_entry(self, uint64_t key, int result) except -1
    cdef int _take_transfer(self, Operation operation, int result) except -1
    cdef int _conclude(self, Operation operation) except -1
    cdef int _tell(self, Operation operation, int error) except -1
