"""The data plane for cimport. Docstrings in plane.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.net.frame_reader cimport WireContext
from shardserver.net.wire cimport Wire


cdef enum:
    LATER = 3  # sends: so long memory may take to come
    SCRATCHES = LATER + 1


cdef struct Taken:  # a send on its way to its partition; references are owned
    PyObject* wire
    PyObject* route
    const uint8_t* batch  # in the part `scratch` of the scratch memory
    size_t size
    uint64_t number
    uint32_t count
    int scratch


cdef class PlaneConnection(Wire):
    cdef Plane plane
    cdef readonly int fd
    cdef readonly bint is_broken
    cdef public bint stopped
    cdef public bint wants_owner
    cdef bint blocked
    cdef uint32_t _watched
    cdef bint _may_hold_more  # its socket: bytes, or the end, that no event will tell of any more
    cdef bint _after_large  # the last read was of a large frame, so the next frame may be one

    cdef int flush(self) except -1
    cdef int fail(self, reason) except -1
    cdef int watch(self) except -1
    cdef bint may_read(self) except -1
    cdef int on_ready(self, uint32_t events) except -1
    cdef ssize_t receive(self) except -2
    cdef ssize_t receive_split(self, size_t rest, size_t more) except -2


cdef class Plane(WireContext):
    cdef int epoll
    cdef uint8_t* scratch  # SCRATCHES of them; what is read goes to the one with the number _scratch
    cdef int _scratch
    cdef list _due
    cdef list _starved
    cdef object _schedule
    cdef bint _draining
    cdef size_t _received  # bytes in this drain
    cdef Taken _taken[LATER]  # a ring: the oldest at _taken_first
    cdef int _taken_first
    cdef int _taken_count
    cdef bint _flush_scheduled

    cdef int serve_ready(self) except -1
    cdef int take_first(self) except -1
    cdef Taken* waiting(self, int number) noexcept
    cdef uint8_t* free_scratch(self) noexcept
    cdef int control(self, PlaneConnection connection, int operation, uint32_t events) except -1
    cdef int starve(self, PlaneConnection connection) except -1
