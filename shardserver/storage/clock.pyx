"""The system's clock, for logs that ask it once a batch.

No twin: one call of libc.
"""

from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec


cdef class SystemClock:
    """Called, it gives microseconds since the epoch. It may go back."""

    def __call__(self):
        return self.now_us()

    cdef uint64_t now_us(self) noexcept nogil:
        cdef timespec now
        clock_gettime(CLOCK_REALTIME, &now)
        return <uint64_t>now.tv_sec * 1000000 + <uint64_t>now.tv_nsec // 1000
