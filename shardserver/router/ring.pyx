"""SPSC descriptor rings in shared memory with C11 atomics. Specification: ring_python.py; the order of every load and
store is argued in docs/formats/ring.md.
"""

from cpython.buffer cimport PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy, memset

from shardserver.errors import CorruptionError
from shardserver.router.ring_python import read_slots

cdef extern from *:
    """
    #include <stdatomic.h>
    #include <stdint.h>
    static inline uint64_t ring_load_acquire(const void* at) {
        return atomic_load_explicit((const _Atomic uint64_t*)at, memory_order_acquire);
    }
    static inline void ring_store_release(void* at, uint64_t value) {
        atomic_store_explicit((_Atomic uint64_t*)at, value, memory_order_release);
    }
    static inline uint32_t ring_load_u32(const void* at) {
        return atomic_load_explicit((const _Atomic uint32_t*)at, memory_order_relaxed);
    }
    static inline uint32_t ring_exchange_u32(void* at, uint32_t value) {
        return atomic_exchange_explicit((_Atomic uint32_t*)at, value, memory_order_seq_cst);
    }
    static inline void ring_full_fence(void) { atomic_thread_fence(memory_order_seq_cst); }
    """
    uint64_t ring_load_acquire(const void* at) noexcept nogil
    void ring_store_release(void* at, uint64_t value) noexcept nogil
    uint32_t ring_load_u32(const void* at) noexcept nogil
    uint32_t ring_exchange_u32(void* at, uint32_t value) noexcept nogil
    void ring_full_fence() noexcept nogil

cdef enum:
    TAIL = 64
    HEAD = 128
    PARKED = 192
    SLOTS = 256
    INLINE = 40


cdef class End:
    """What both ends share. A view of our own, so that the memory stays mapped when the caller releases his."""

    def __cinit__(self, memory):
        cdef Py_buffer view
        self.slots = read_slots(memory)
        self._mask = self.slots - 1
        self._view = memoryview(memory)
        PyObject_GetBuffer(self._view, &view, PyBUF_WRITABLE)
        self._memory = <uint8_t*>view.buf
        PyBuffer_Release(&view)

    cdef int64_t in_use(self, uint64_t head, uint64_t tail) except -1:
        """The bound of every index: whoever passes it stays inside the slots."""
        if tail - head > self.slots:  # unsigned: a tail below the head is caught too
            raise CorruptionError("ring", TAIL, f"a tail at most {self.slots} slots above {head}, found {tail}")
        return tail - head

    cdef SlotBytes* slot(self, uint64_t number) noexcept nogil:
        return <SlotBytes*>(self._memory + SLOTS + sizeof(SlotBytes) * (number & self._mask))


cdef class Producer(End):
    """The one writer of a ring's slots and tail. What is pushed is seen by nobody before `publish`."""

    def __init__(self, memory):
        self._own = ring_load_acquire(self._memory + TAIL)

    def free_slots(self):
        return self.slots - self.in_use(ring_load_acquire(self._memory + HEAD), self._own)

    cdef SlotBytes* try_claim(self, bint is_request) except? NULL:
        """The next slot, to be filled before `publish`; NULL without an exception: full."""
        # Acquire pairs with the consumer's release of head: it has read the slot that we are about to overwrite.
        cdef int64_t used = self.in_use(ring_load_acquire(self._memory + HEAD), self._own)
        if used >= (self.slots // 2 if is_request else self.slots):
            return NULL
        self._own += 1
        return self.slot(self._own - 1)

    def try_push(
        self,
        uint16_t kind,
        uint16_t flags,
        uint32_t length,
        uint64_t request,
        uint64_t position,
        bytes inline,
        bint is_request,
    ):
        """False: full, for a request already when half of the slots are in use. Raises ValueError: inline too long."""
        cdef Py_ssize_t size = len(inline)
        if size > INLINE:
            raise ValueError(f"{size} inline bytes, room for {INLINE}")
        cdef SlotBytes* claimed = self.try_claim(is_request)
        if claimed == NULL:
            return False
        claimed.kind, claimed.flags, claimed.length = kind, flags, length
        claimed.request, claimed.position = request, position
        memset(claimed.inline_bytes, 0, INLINE)
        memcpy(claimed.inline_bytes, <const char*>inline, size)
        return True

    cpdef bint publish(self) noexcept:
        """Show what was pushed. True: the consumer was parked, and its doorbell has to be rung."""
        # Release pairs with the consumer's acquire of tail: who sees the tail sees the slots and the arena behind them.
        ring_store_release(self._memory + TAIL, self._own)
        # Full fence between our store of tail and our load of parked; its pair stands in try_park. In any other order
        # the consumer can park between the two and sleep beside a ring that is not empty.
        ring_full_fence()
        return ring_load_u32(self._memory + PARKED) == 1 and ring_exchange_u32(self._memory + PARKED, 0) == 1


cdef class Consumer(End):
    """The one writer of a ring's head."""

    def __init__(self, memory):
        self._own = ring_load_acquire(self._memory + HEAD)

    cpdef int64_t waiting(self) except -1:
        # Acquire pairs with the producer's release of tail.
        return self.in_use(self._own, ring_load_acquire(self._memory + TAIL))

    def take(self, limit):
        """At most `limit` slots, in order; the producer may use theirs again at once."""
        cdef int64_t count = min(<int64_t>limit, self.waiting())
        cdef list taken = []
        cdef SlotBytes* one
        while count > 0:
            one = self.slot(self._own)
            inline = (<const char*>one.inline_bytes)[:INLINE]
            taken.append((one.kind, one.flags, one.length, one.request, one.position, inline))
            self._own += 1
            count -= 1
        # Release pairs with the producer's acquire of head: our reads are done.
        ring_store_release(self._memory + HEAD, self._own)
        return taken

    cdef int64_t copy_slots(self, SlotBytes* into, int64_t limit) except -1:
        """As take, for a caller in C; gives their number."""
        cdef int64_t index, count = min(limit, self.waiting())
        for index in range(count):
            into[index] = self.slot(self._own)[0]
            self._own += 1
        ring_store_release(self._memory + HEAD, self._own)  # as in take
        return count

    def try_park(self):
        """True: the ring is empty, and a publish from now on says that the doorbell has to be rung."""
        ring_exchange_u32(self._memory + PARKED, 1)
        ring_full_fence()  # between our store of parked and our load of tail; its pair stands in publish
        if self.waiting():
            ring_exchange_u32(self._memory + PARKED, 0)
            return False
        return True

    def unpark(self):
        """Awake: no doorbell until the next try_park."""
        ring_exchange_u32(self._memory + PARKED, 0)
