"""The arena for servers. Strategy and specification: arena_python.py; layout and ownership: docs/formats/ring.md, "Arena".

What is free stands in one bitmap an order, with a tree of summaries above it (bit n of a level: word n of the level
below is not zero), so that the lowest free block is found in at most five steps. 2 bits a unit: 1 MiB for 1 GiB, and
pages of it that no block has touched are never committed. All numbers come from blocks that we cut ourselves.
Guarded by the GIL: views may be dropped on any thread.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
)
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from shardserver.errors import ArenaFullError
from shardserver.memory.arena_python import ArenaStatistics, check_arena, check_slice

from shardserver.memory.huge_memory cimport HUGE, HugeMemory

cdef extern from *:
    """
    static inline int arena_floor_log2(unsigned long long value) { return 63 - __builtin_clzll(value); }
    static inline int arena_lowest_bit(unsigned long long value) { return __builtin_ctzll(value); }
    """
    int arena_floor_log2(uint64_t value) noexcept nogil
    int arena_lowest_bit(uint64_t value) noexcept nogil

cdef char* BYTES_FORMAT = b"B"

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void* start, size_t length, int advice)

cdef enum:
    MADV_POPULATE_WRITE = 23  # linux/mman.h
    PRESENT_STEP = HUGE
    UNIT = 256
    PAGE = 4096
    PARTS_OF_POWER = 8


cdef inline uint64_t units_of(uint64_t size) noexcept nogil:
    cdef uint64_t step = max(<uint64_t>UNIT, (<uint64_t>1 << arena_floor_log2(size)) // PARTS_OF_POWER)
    return (size + step - 1) // step * step // UNIT


@cython.final
cdef class Buddies:
    """Which units are free."""

    def __cinit__(self, uint64_t units):
        cdef int order, level
        cdef uint64_t count, total = 0, place = 0
        for order in range(arena_floor_log2(units) + 1):
            count = units >> order
            self._free[order].bits = count
            for level in range(LEVELS):
                count = (count + 63) // 64
                total += count
                self._free[order].top = level
                if count == 1:
                    break
        self._words = <uint64_t*>calloc(total, sizeof(uint64_t))
        if self._words == NULL:
            raise MemoryError()
        for order in range(arena_floor_log2(units) + 1):
            count = units >> order
            for level in range(self._free[order].top + 1):
                count = (count + 63) // 64
                self._free[order].words[level] = self._words + place
                place += count
        self.give_back(0, units)

    def __dealloc__(self):
        free(self._words)

    cdef void mark_free(self, int order, uint64_t number) noexcept nogil:
        cdef Bitmap* bitmap = &self._free[order]
        cdef int level
        cdef uint64_t former
        for level in range(bitmap.top + 1):
            former = bitmap.words[level][number >> 6]
            bitmap.words[level][number >> 6] = former | <uint64_t>1 << (number & 63)
            if former:
                return  # the levels above know
            number >>= 6
        self._open |= <uint32_t>1 << order

    cdef void mark_taken(self, int order, uint64_t number) noexcept nogil:
        cdef Bitmap* bitmap = &self._free[order]
        cdef int level
        for level in range(bitmap.top + 1):
            bitmap.words[level][number >> 6] &= ~(<uint64_t>1 << (number & 63))
            if bitmap.words[level][number >> 6]:
                return
            number >>= 6
        self._open &= ~(<uint32_t>1 << order)

    cdef bint is_free(self, int order, uint64_t number) noexcept nogil:
        if number >= self._free[order].bits:
            return False
        return self._free[order].words[0][number >> 6] >> (number & 63) & 1

    cdef uint64_t lowest(self, int order) noexcept nogil:
        """The lowest free block of an order that has one."""
        cdef Bitmap* bitmap = &self._free[order]
        cdef int level = bitmap.top
        cdef uint64_t number = 0
        while level >= 0:
            number = number << 6 | <uint64_t>arena_lowest_bit(bitmap.words[level][number])
            level -= 1
        return number

    cdef int64_t take(self, uint64_t units) noexcept nogil:
        """The first of `units` adjacent units; -1: there is no such block."""
        cdef int order = arena_floor_log2(units * 2 - 1)
        cdef uint32_t fitting
        cdef uint64_t number, first, position, end
        if order >= ORDERS:
            return -1
        fitting = self._open & ~((<uint32_t>1 << order) - 1)
        if fitting == 0:
            return -1
        order = arena_lowest_bit(fitting)
        number = self.lowest(order)
        self.mark_taken(order, number)
        first, end = number << order, (number + 1) << order
        position = first + units
        while position < end:  # trim; nothing there can be joined, as its buddy is ours
            order = arena_lowest_bit(position)
            self.mark_free(order, position >> order)
            position += <uint64_t>1 << order
        return first

    cdef void give_back(self, uint64_t position, uint64_t units) noexcept nogil:
        """Free what `take` gave, in its power-of-two pieces."""
        cdef int order
        while units:
            order = arena_floor_log2(units)
            self.join(order, position >> order)
            position += <uint64_t>1 << order
            units -= <uint64_t>1 << order

    cdef void join(self, int order, uint64_t number) noexcept nogil:
        while self.is_free(order, number ^ 1):
            self.mark_taken(order, number ^ 1)
            order += 1
            number >>= 1
        self.mark_free(order, number)

    cdef uint64_t largest(self) noexcept nogil:
        return <uint64_t>1 << arena_floor_log2(self._open) if self._open else 0


@cython.final
cdef class Arena:
    """One owner allocates in it; peers map it read-only. first: bytes [0, first) are the board, never allocated."""

    def __cinit__(self, memory, uint64_t first=4096):
        cdef Py_buffer view
        self._huge = memory if isinstance(memory, HugeMemory) else None
        self._memory = memoryview(memory)  # holds it open: an mmap cannot be closed under our blocks
        PyObject_GetBuffer(self._memory, &view, PyBUF_WRITABLE)
        self._start, self._bytes = <uint8_t*>view.buf, view.len
        PyBuffer_Release(&view)
        self._buddies = Buddies(check_arena(self._bytes, first))
        self._first = first
        self._present = 0 if <size_t>self._start % PAGE == 0 else self._bytes

    @property
    def used_bytes(self):
        return self._used_units * UNIT

    @property
    def bytes(self):
        return self._bytes - self._first

    cpdef Block allocate(self, Py_ssize_t size):
        """A writable block of exactly `size` bytes, not zeroed. From 4096 bytes on it begins at a multiple of 4096.

        Raises ArenaFullError; ValueError: size below 1.
        """
        if size < 1:
            raise ValueError(f"a block of {size} bytes")
        cdef Block block = Block.__new__(Block)  # before anything is taken: this may fail
        cdef uint64_t units = units_of(size)
        cdef int64_t unit = self._buddies.take(units)
        if unit < 0:
            raise ArenaFullError(f"no room for {size} bytes in the arena, {self.used_bytes} of {self.bytes} used")
        block._arena, block._units, block.size = self, units, size
        block.position = self._first + <uint64_t>unit * UNIT
        block.data = self._start + block.position
        if self._present < block.position + units * UNIT <= self._present + PRESENT_STEP:
            self.make_present()
        self._used_units += units
        self._blocks += 1
        return block

    cdef void make_present(self) noexcept:
        """Have the kernel put pages where blocks come to, many in one call: a fault for each costs about 9 us.

        Small blocks are taken from the lowest place on, so memory that is never needed is not touched; large ones that
        lie further on are left to faults.
        """
        cdef uint64_t wanted = min(self._bytes, self._present + PRESENT_STEP)
        if self._huge is None or not self._huge.is_huge_up_to(wanted):
            if madvise(self._start + self._present, wanted - self._present, MADV_POPULATE_WRITE) < 0:
                wanted = self._bytes  # a kernel before 5.14, or no memory: whoever touches a page meets that
        self._present = wanted

    cpdef use_huge_pages(self, Block block):
        """Have it, and all below it, come to lie on huge pages, where the memory has them.

        Not what lies beyond the pages that are there: between them nothing may be used yet.
        """
        if self._huge is not None and block.position + block.size <= self._present:
            self._huge.use_up_to(block.position + block.size)

    cpdef Block copy(self, data):
        """A block with the bytes of a contiguous buffer. Raises as allocate; BufferError: not contiguous."""
        cdef Py_buffer view
        cdef Block block
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            block = self.allocate(view.len)
            memcpy(block.data, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return block

    cdef Block copy_bytes(self, const uint8_t* data, Py_ssize_t size):
        """As copy, for a caller in C."""
        cdef Block block = self.allocate(size)
        memcpy(block.data, data, size)
        return block

    cpdef int64_t position_of(self, buffer) except -2:
        """Where a contiguous buffer lies in the arena; -1: elsewhere. Raises BufferError: not contiguous."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        cdef uint8_t* start = <uint8_t*>view.buf
        cdef uint64_t length = view.len
        PyBuffer_Release(&view)
        if start < self._start or length > self._bytes:
            return -1
        return start - self._start if <uint64_t>(start - self._start) <= self._bytes - length else -1

    def statistics(self):
        return ArenaStatistics(self.bytes, self.used_bytes, self._blocks, self._buddies.largest() * UNIT)


cdef inline void fill_view(Py_buffer* view, uint8_t* data, Py_ssize_t size, int flags) noexcept:
    """Writable bytes in one dimension. `view` points into itself for shape and strides, as PyBuffer_FillInfo has it."""
    view.buf, view.len = data, size
    view.readonly, view.itemsize, view.ndim = False, 1, 1
    view.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
    view.shape = &view.len if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
    view.suboffsets, view.internal = NULL, NULL


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """Exports its bytes, writable. Views of it hold it; when it goes, its memory is the arena's again."""

    def __init__(self):
        raise TypeError("blocks come from an arena")

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        view.obj = self
        fill_view(view, self.data, self.size, flags)

    def __dealloc__(self):
        if self._units:
            self._arena._buddies.give_back((self.position - self._arena._first) // UNIT, self._units)
            self._arena._used_units -= self._units
            self._arena._blocks -= 1


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class BlockPart:
    """Exports some bytes of a block, writable, and holds it."""

    def __len__(self):
        return self._size

    def __getbuffer__(self, Py_buffer* view, int flags):
        view.obj = self
        fill_view(view, self._data, self._size, flags)


cdef object part_of(Block block, uint8_t* data, Py_ssize_t size):
    """A buffer of `size` bytes at `data`, in the block; the block itself, if these are all of it."""
    if data == block.data and size == block.size:
        return block
    cdef BlockPart part = BlockPart.__new__(BlockPart)
    part._block, part._data, part._size = block, data, size
    return part


@cython.final
cdef class PaddedBlock:
    """Exports a block with the zeros behind it, read-only."""

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a padded block is there to be written to disk")
        view.obj = self
        fill_view(view, self._block.data, self._size, flags)
        view.readonly = True


def padded(buffer):
    """A block's bytes and zeros up to a multiple of 4096, as an O_DIRECT write takes them, without a copy.

    None: it is no block, or none that begins at a multiple of 4096 and has room for the zeros. From 32 KiB on all have.
    """
    if not isinstance(buffer, Block):
        return None
    cdef Block block = <Block>buffer
    cdef Py_ssize_t size = (block.size + PAGE - 1) // PAGE * PAGE
    if block.position % PAGE or size > <Py_ssize_t>(block._units * UNIT):
        return None
    memset(block.data + block.size, 0, size - block.size)
    cdef PaddedBlock made = PaddedBlock.__new__(PaddedBlock)
    made._block, made._size = block, size
    return memoryview(made)


@cython.final
cdef class LentBuffer:
    """Exports a slice of a peer's arena, read-only. `loan` is held until the last view of it is gone: then it dies,
    and its end tells the owner that the block is free.

    Raises CorruptionError: the slice is not within memory.
    """

    def __cinit__(self, memory, position, length, loan):
        cdef Py_buffer view
        self._memory, self._loan = memoryview(memory), loan
        check_slice(len(self._memory), position, length)
        PyObject_GetBuffer(self._memory, &view, PyBUF_SIMPLE)
        self.data, self.size = <uint8_t*>view.buf + <uint64_t>position, length
        PyBuffer_Release(&view)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a peer's arena is read-only")
        view.obj = self
        fill_view(view, self.data, self.size, flags)
        view.readonly = True
