"""The tail for cimport. Docstrings in tail.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum:
    TAIL_BYTES = 128  # of a tail, its reference count first, without the newest entries
    NEWEST = 4


cdef struct Entry:  # one stamped batch; the tail owns a reference to `held`, which has its bytes, at `data`, maybe among others
    uint64_t base
    uint64_t timestamp
    uint64_t sequence
    uint8_t* data
    size_t size
    PyObject* held
    uint32_t count


cdef object bytes_of(const Entry* entry)


cdef class TailTotal:
    cdef readonly uint64_t bytes


cdef class Tail:
    cdef TailTotal _total
    # By place: entries before _first are evicted, those up to _settled in _entries, those from there to _end in _newest.
    cdef Entry* _entries
    cdef size_t _room
    cdef size_t _first
    cdef size_t _settled
    cdef size_t _end
    cdef readonly uint64_t bytes
    cdef Entry _newest[NEWEST]

    cdef Entry* add(self, uint64_t base, uint32_t count, uint64_t timestamp, object held, uint8_t* data, size_t size) except NULL
    cdef Entry* at_place(self, size_t place) noexcept nogil
    cdef int settle(self) except -1
    cdef int make_room(self) except -1
    cdef size_t place_of(self, uint64_t offset) noexcept nogil
    cdef int drop_oldest(self) except -1
    cdef bint has_below(self, uint64_t limit_offset) noexcept nogil
    cpdef uint64_t evict_oldest(self, uint64_t limit_offset) except? 0
