"""How long synced writes take: counts by duration, in buckets at most an eighth wide.

No twin: an array of counters, whose bounds the tests compare with a sorted list. It is counted once a journal write,
which is why it is not Python.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    int __builtin_clzll(unsigned long long) noexcept nogil

cdef enum:
    # Eight buckets for each power of two, as in HDR histograms: 12.5 % is far below what a device varies by.
    STEPS = 8

cdef uint64_t MOST_US = 1 << 36  # 19 hours: what takes longer is counted with them


cdef class SyncTimes:
    """Owned by one shard. Counts only grow: whoever asks twice has those between."""

    cdef int add(self, double seconds) noexcept nogil:
        cdef uint64_t us = min(<uint64_t>max(seconds * 1e6, 0.0), MOST_US)
        self._counts[bucket_of(us)] += 1
        return 0

    def note(self, double seconds):
        """Once a synced write, whether it failed or not."""
        self.add(seconds)

    def counts(self):
        """[(microseconds, syncs that took at most so long and longer than the one before)], ascending."""
        return [(most_us(bucket), self._counts[bucket]) for bucket in range(BUCKETS) if self._counts[bucket]]


cdef inline uint64_t bucket_of(uint64_t us) noexcept nogil:
    """Below 2 * STEPS each microsecond has its own."""
    cdef uint64_t shift = 0
    if us >= 2 * STEPS:
        shift = 60 - <uint64_t>__builtin_clzll(us)
    return shift * STEPS + (us >> shift)


cdef inline uint64_t most_us(uint64_t bucket) noexcept nogil:
    cdef uint64_t shift
    if bucket < 2 * STEPS:
        return bucket
    shift = bucket // STEPS - 1
    return ((bucket - shift * STEPS + 1) << shift) - 1
