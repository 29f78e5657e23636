"""Batches for cimport. Docstrings in batch.pyx."""

from libc.stdint cimport uint8_t, uint64_t

cdef uint64_t xxh3(const uint8_t *data, size_t length) noexcept nogil
cdef int verify(const uint8_t *data, size_t length, uint64_t count) noexcept nogil
cdef void stamp(
    uint8_t *data, size_t length, uint64_t partition_id, uint64_t base_offset, uint64_t base_timestamp
) noexcept nogil
