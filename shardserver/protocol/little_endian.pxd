# cython: language_level=3
"""Integers as the protocol and the formats on disk have them: little-endian, at any address.

memcpy, because an address need not be aligned. The caller has proved that the bytes are there. The machine is
little-endian, as all are that this server supports (x86-64, AArch64).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline uint32_t read_u32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline uint64_t read_u64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef inline void write_u32(uint8_t *at, uint32_t value) noexcept nogil:
    memcpy(at, &value, 4)


cdef inline void write_u64(uint8_t *at, uint64_t value) noexcept nogil:
    memcpy(at, &value, 8)
