"""What steps.pyx needs of a group's writes: 0, or an errno. A short write goes on at a whole block."""

from libc.stdint cimport int64_t, uint8_t

cdef int write_whole(int descriptor, const uint8_t* data, size_t size, int64_t position) noexcept nogil
cdef int sync_whole(int descriptor) noexcept nogil
