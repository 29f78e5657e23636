"""The journal write being built, for cimport. Docstrings in staging.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef class Staging:
    cdef object _memory
    cdef uint8_t* _data
    cdef size_t _size
    cdef size_t _room
    cdef readonly size_t used
    cdef readonly uint32_t records

    cpdef begin(self, size_t room)
    cpdef object seal(
        self,
        uint16_t flags,
        uint64_t journal_id,
        uint64_t nonce,
        uint64_t sequence,
        uint64_t position,
        uint64_t previous_sequence,
        uint64_t previous_end,
        uint64_t oldest_live,
    )
    cpdef bint fits(self, size_t payload_bytes) noexcept
    cdef int add_bytes(
        self, uint8_t kind, uint8_t flags, uint32_t shard, uint64_t uid, uint32_t term, const uint8_t* data, size_t size
    ) except -1
