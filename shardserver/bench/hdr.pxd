# cython: language_level=3
"""An HDR histogram's bucketing in C: a plain array of counts, one per bucket, as the hdrhistogram library numbers them.

Values are nanoseconds, 1 to one hour, at 3 significant digits: the first 2048 values have a bucket each, then every
doubling has 1024 of them. tests/bench/test_latencies.py compares each bucket with the library's.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    int clz "__builtin_clzll"(unsigned long long value) nogil

cdef enum:
    HALF_MAGNITUDE = 10
    HALF_COUNT = 1 << HALF_MAGNITUDE
    SUB_BUCKET_MASK = 2 * HALF_COUNT - 1
    BUCKETS = 32
    COUNTS = (BUCKETS + 1) * HALF_COUNT


cdef inline size_t count_index(uint64_t value) noexcept nogil:
    """Below COUNTS for every value up to one hour; a longer one counts as one hour."""
    cdef uint64_t kept = min(value, <uint64_t>3_600_000_000_000)
    cdef int bucket = 64 - clz(kept | SUB_BUCKET_MASK) - (HALF_MAGNITUDE + 1)
    return (<size_t>(bucket + 1) << HALF_MAGNITUDE) + (kept >> bucket) - HALF_COUNT
