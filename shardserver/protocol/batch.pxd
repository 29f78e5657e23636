"""Batches for cimport. Docstrings in batch.pyx."""

from libc.stdint cimport uint8_t, uint64_t

cdef int verify(const uint8_t *data, size_t length, uint64_t count) noexcept nogil
