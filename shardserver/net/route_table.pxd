"""Routes by key for cimport. Docstrings in route_table.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint64_t


cdef enum:
    NEAR = 40  # with which a place is one cache line


cdef union KeyBytes:
    uint8_t near[NEAR]
    uint8_t* far  # of longer ones, owned


cdef struct Known:  # free while `route` is NULL; the route is owned
    uint64_t hash
    PyObject* route
    size_t length
    KeyBytes key


cdef class RouteTable:
    cdef Known* _places
    cdef uint64_t _room
    cdef readonly uint64_t count

    cdef Known* place_of(self, const uint8_t* key, size_t length) noexcept
    cdef void expect(self, const uint8_t* key, size_t length) noexcept
    cdef object find(self, const uint8_t* key, size_t length)
    cdef int add(self, const uint8_t* key, size_t length, route) except -1
    cdef int grow(self) except -1
    cdef int drop(self) except -1
