"""The ring for cimport: what the data plane calls per slot. Docstrings in ring.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef packed struct SlotBytes:
    uint16_t kind
    uint16_t flags
    uint32_t length
    uint64_t request
    uint64_t position
    uint8_t inline_bytes[40]


cdef class End:
    cdef object _view
    cdef uint8_t* _memory
    cdef readonly uint32_t slots
    cdef uint64_t _mask
    cdef uint64_t _own  # tail of a producer, head of a consumer: written by us alone

    cdef int64_t in_use(self, uint64_t head, uint64_t tail) except -1
    cdef SlotBytes* slot(self, uint64_t number) noexcept nogil


cdef class Producer(End):
    cdef SlotBytes* try_claim(self, bint is_request) except? NULL
    cpdef bint publish(self) noexcept


cdef class Consumer(End):
    cpdef int64_t waiting(self) except -1
    cdef int64_t copy_slots(self, SlotBytes* into, int64_t limit) except -1
