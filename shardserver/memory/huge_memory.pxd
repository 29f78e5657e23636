"""Memory on huge pages for cimport. Docstrings in huge_memory.pyx."""

from libc.stdint cimport uint8_t, uint64_t

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass

cdef enum:
    HUGE = 2 << 20


cdef class HugeMemory:
    cdef uint8_t* _start
    cdef size_t _length
    cdef object _thread
    cdef sem_t _wake
    cdef uint64_t _wanted  # written by the owner
    cdef uint64_t _done  # by the thread
    cdef uint64_t _stopped

    cdef void use_up_to(self, uint64_t end) noexcept
    cdef bint is_huge_up_to(self, uint64_t end) noexcept
    cdef void work(self) noexcept nogil
