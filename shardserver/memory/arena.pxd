"""The arena for cimport. Docstrings in arena.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from shardserver.memory.huge_memory cimport HugeMemory

cdef enum:
    ORDERS = 29  # 2^28 units of 256 bytes are 64 GiB
    LEVELS = 5  # 64^5 > 2^28


cdef struct Bitmap:
    uint64_t bits
    int top  # the level that is one word
    uint64_t* words[LEVELS]


cdef class Buddies:
    cdef uint64_t* _words
    cdef Bitmap _free[ORDERS]
    cdef uint32_t _open  # bit k: some block of order k is free

    cdef void mark_free(self, int order, uint64_t number) noexcept nogil
    cdef void mark_taken(self, int order, uint64_t number) noexcept nogil
    cdef bint is_free(self, int order, uint64_t number) noexcept nogil
    cdef uint64_t lowest(self, int order) noexcept nogil
    cdef int64_t take(self, uint64_t units) noexcept nogil
    cdef void give_back(self, uint64_t position, uint64_t units) noexcept nogil
    cdef void join(self, int order, uint64_t number) noexcept nogil
    cdef uint64_t largest(self) noexcept nogil


cdef class Arena:
    cdef object _memory
    cdef HugeMemory _huge  # what it lies in, or None
    cdef uint8_t* _start
    cdef uint64_t _first
    cdef uint64_t _present  # whole pages below it are there
    cdef uint64_t _bytes
    cdef uint64_t _used_units
    cdef uint64_t _blocks
    cdef Buddies _buddies
    cdef public bint is_scattered  # what is written next lies on more pages than the processor knows the places of

    cpdef Block allocate(self, Py_ssize_t size)
    cdef void make_present(self) noexcept
    cpdef use_huge_pages(self, Block block)
    cpdef Block copy(self, data)
    cdef Block copy_bytes(self, const uint8_t* data, Py_ssize_t size)
    cpdef int64_t position_of(self, buffer) except -2


cdef class Block:
    cdef Arena _arena
    cdef uint8_t* data
    cdef readonly uint64_t position
    cdef uint64_t _units
    cdef Py_ssize_t size


cdef class BlockPart:
    cdef Block _block
    cdef uint8_t* _data
    cdef Py_ssize_t _size


cdef object part_of(Block block, uint8_t* data, Py_ssize_t size)


cdef class PaddedBlock:
    cdef Block _block
    cdef Py_ssize_t _size


cdef class LentBuffer:
    cdef object _memory
    cdef object _loan
    cdef uint8_t* data
    cdef Py_ssize_t size
