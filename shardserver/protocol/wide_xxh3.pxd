"""XXH3 with wide vectors for cimport. Reasons in wide_xxh3.pyx."""

from libc.stdint cimport uint64_t

cdef bint has_wide_xxh3() noexcept nogil
cdef uint64_t wide_xxh3(const void *data, size_t length) noexcept nogil  # on a processor that has it only
