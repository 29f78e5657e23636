"""Output for cimport. Docstrings in output.pyx."""

from libc.stdint cimport uint8_t

cdef struct Piece:  # held NULL: `start` in the output's own bytes
    const uint8_t* held
    size_t start
    size_t length


cdef class Output:
    cdef uint8_t* _bytes
    cdef size_t _used
    cdef size_t _room
    cdef Piece* _pieces
    cdef size_t _first
    cdef size_t _count
    cdef size_t _piece_room
    cdef list _kept
    cdef readonly size_t total

    cdef uint8_t* claim(self, size_t size) except NULL
    cdef int add_piece(self, const uint8_t* held, size_t length) except -1
    cdef int add(self, buffer) except -1
    cdef int send(self, int fd) except -2
    cdef size_t gather(self, void* into) noexcept
    cdef int drop(self, size_t sent) except -1
    cdef int clear(self) except -1
    cdef bytes joined(self)
