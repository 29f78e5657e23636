"""Sends on their way, for cimport. Docstrings in sends.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Arena, Block


cdef class Waiter:
    cdef int confirm(self, uint64_t ticket, uint64_t base) except -1
    cdef int refuse(self, uint64_t ticket, error) except -1


cdef class CallbackWaiter(Waiter):
    cdef object _done


cdef class Target:
    cdef void expect(self, size_t size) noexcept
    cdef int take(self, Block batch, uint32_t count, Waiter waiter, uint64_t ticket) except -1
    cdef int take_bytes(
        self, Arena arena, const uint8_t* batch, size_t size, uint32_t count, Waiter waiter, uint64_t ticket
    ) except -1


cdef class CallbackTarget(Target):
    cdef object _append


cdef class Ticket:
    cdef Waiter _waiter
    cdef uint64_t _number


cdef Ticket make_ticket(Waiter waiter, uint64_t number)
