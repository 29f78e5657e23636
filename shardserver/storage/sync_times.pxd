"""The histogram of syncs, for cimport. Docstrings in sync_times.pyx."""

from libc.stdint cimport uint64_t

cdef enum:
    BUCKETS = 288


cdef class SyncTimes:
    cdef uint64_t _counts[BUCKETS]

    cdef int add(self, double seconds) noexcept nogil
