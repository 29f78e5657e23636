"""Bytes to frames, for cimport. Docstrings in frame_reader.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Arena, Block
from shardserver.protocol.sends cimport Waiter


cdef bint checksum_is_good(const uint8_t* raw, size_t body) noexcept nogil
cdef bint split_checksum_is_good(const uint8_t* raw, size_t start, const uint8_t* batch, size_t length) noexcept nogil


cdef class WireContext:
    cdef readonly Arena arena
    cdef readonly object code_of
    cdef public uint64_t revision
    cdef public uint64_t in_flight_bytes
    cdef readonly uint64_t arriving_bytes
    cdef readonly uint64_t in_flight_limit

    cdef int flush_later(self, FrameReader wire) except -1
    cdef bint take_later(
        self, FrameReader wire, uint64_t number, route, const uint8_t* batch, size_t size, uint32_t count
    ) except -1
    cdef int take_now(self) except -1


cdef class FrameReader(Waiter):
    cdef WireContext context
    cdef public str close_reason
    cdef size_t _max_frame_bytes
    # The frame under way. Before its header is whole: _head_used bytes of it. Then _into is not NULL, has room for _size
    # and holds _filled: in _frame all of it, or in _block its batch, and in _header the _start bytes before that.
    cdef uint8_t _header[1024]
    cdef size_t _head_used
    cdef object _frame
    cdef Block _block
    cdef uint8_t* _into
    cdef size_t _start
    cdef size_t _size
    cdef size_t _filled

    cdef int take_bytes(self, const uint8_t* data, size_t length) except -1
    cdef size_t take_some(self, const uint8_t* data, size_t length) except? 0
    cdef int look_at_header(self) except -1
    cdef size_t check_header(self, const uint8_t* raw) except? 0
    cdef int begin_frame(self, const uint8_t* data, size_t length, size_t size) except -1
    cdef bint make_block(self, size_t size) except -1
    cdef int frame_grew(self, size_t part) except -1
    cdef int end_frame(self) except -1
    cdef size_t find_batch(self, const uint8_t* raw, size_t length, size_t size) except? 0
    cdef int take_frame(self, const uint8_t* raw, size_t size) except -1
    cdef int take_arrived(self) except -1
    cdef int advance(self) except -1
    cdef int close_after_replies(self, reason) except -1
