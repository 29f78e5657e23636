"""The open file for cimport. Docstrings in open_file.pyx."""

cdef class OpenFile:
    cdef readonly str path
    cdef readonly bint direct
    cdef readonly int descriptor
    cdef readonly bint dsync
    cdef readonly unsigned in_flight
    cdef public object on_idle

    cpdef enter(self)
    cpdef leave(self)
