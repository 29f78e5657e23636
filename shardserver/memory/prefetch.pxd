# cython: language_level=3
"""Asking for memory ahead of its use: of thousands of partitions none is in the processor's cache when its turn comes."""

cdef extern from *:
    """
    static inline void prefetch_bytes(const void *start, size_t size)
    {
        for (size_t line = 0; line < size; line += 64)
            __builtin_prefetch((const char *)start + line);
    }
    static inline void prefetch_to_write(void *start, size_t size)
    {
        for (size_t line = 0; line < size; line += 64)
            __builtin_prefetch((char *)start + line, 1);
    }
    """
    void prefetch_bytes(const void* start, size_t size) noexcept nogil
    void prefetch_to_write(void* start, size_t size) noexcept nogil
