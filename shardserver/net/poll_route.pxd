"""Routes of polls for cimport. Docstrings in poll_route.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.net.output cimport Output
from shardserver.storage.append_log cimport AppendLog

cdef enum:
    POLL_TAIL = 14  # strategy, value, count, auto-commit: what follows the key in a request


cdef class PollRoute:
    cdef AppendLog _log
    cdef object _committed
    cdef object _commit
    cdef object _may_poll
    cdef object _note_delivered
    cdef uint64_t _max_bytes
    cdef readonly uint64_t uid
    cdef uint64_t _requests
    cdef uint64_t _bytes

    cdef bint try_answer(
        self, const uint8_t* asked, Output output, const uint8_t* header, size_t header_bytes
    ) except -1
    cdef bint find_start(self, uint8_t strategy, uint64_t value, uint32_t count, uint64_t* start) except -1
    cdef list collect(self, uint64_t* next_offset, uint32_t count)
    cdef int write(
        self, Output output, const uint8_t* header, size_t header_bytes, list parts, uint32_t count
    ) except -1
