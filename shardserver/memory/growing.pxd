# cython: language_level=3
"""An array that grows while somebody waits. From MAPPED bytes on it is a mapping of its own, on small pages.

realloc copies an array to fresh pages of the heap, and the first touch of a huge one takes a virtual machine up to 12 ms
(docs/performance.md, "Stops"); arrays of partitions that fill alike grow together. A mapping grows where it is, or its
pages move without a copy, and its new ones are touched one by one.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memcpy
from posix.mman cimport (
    MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap, mremap, munmap
)

cdef extern from "<sys/mman.h>":
    enum:
        MREMAP_MAYMOVE

cdef enum:
    MAPPED = 128 << 10


cdef inline void* grown(void* array, size_t size, size_t wanted) noexcept nogil:
    """The array with room for `wanted` bytes, more than `size`, which it has; none has 0. NULL: it stays as it is."""
    cdef void* mapped
    if wanted < MAPPED:
        return realloc(array, wanted)
    if size >= MAPPED:
        mapped = mremap(array, size, wanted, MREMAP_MAYMOVE)
        return NULL if mapped == MAP_FAILED else mapped
    mapped = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if mapped == MAP_FAILED:
        return NULL
    madvise(mapped, wanted, MADV_NOHUGEPAGE)  # a kernel without huge pages refuses, and has none
    if size:
        memcpy(mapped, array, size)
    free(array)
    return mapped


cdef inline void freed(void* array, size_t size) noexcept nogil:
    if size < MAPPED:
        free(array)
    else:
        munmap(array, size)
