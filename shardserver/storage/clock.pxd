"""The clock of batches, for cimport. Docstrings in clock.pyx."""

from libc.stdint cimport uint64_t


cdef class SystemClock:
    cdef uint64_t now_us(self) noexcept nogil
