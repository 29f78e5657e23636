"""Bytes to frames: of one connection, in whatever pieces they come.

A frame that is whole where it was read is taken there. Else it is gathered: with a large batch by a known route in the
block where that stays, allocated when all before the batch is there, other frames beside. Every length from a client is
checked against what is there before it is used. Specification: FrameDecoder in protocol/frame.py.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shardserver.errors import ArenaFullError, ProtocolError
from shardserver.protocol.frame import check_request_header, name_foreign_protocol

from shardserver.memory.arena cimport Arena, Block
from shardserver.protocol.little_endian cimport read_u32, read_u64
from shardserver.protocol.sends cimport Waiter


cdef extern from "xxhash.h" nogil:
    ctypedef struct XXH3_state_t:
        pass
    uint64_t XXH3_64bits(const void *data, size_t length)
    void XXH3_INITSTATE(XXH3_state_t *state)
    int XXH3_64bits_reset(XXH3_state_t *state)
    int XXH3_64bits_update(XXH3_state_t *state, const void *data, size_t length)
    uint64_t XXH3_64bits_digest(const XXH3_state_t *state)

cdef enum:
    HEADER = 256
    # Of a request header (framing 2).
    SIZE = 48
    COMMAND = 60
    CLIENT = 128
    CHECKSUM = 144
    COMMAND_REQUEST = 5


cdef bint checksum_is_good(const uint8_t* raw, size_t body) noexcept nogil:
    """The request's checksum of its body, when it carries one (framing 4): XXH3-64 in 16 bytes."""
    cdef uint64_t low = read_u64(raw + CHECKSUM), high = read_u64(raw + CHECKSUM + 8)
    return (low == 0 and high == 0) or (high == 0 and low == XXH3_64bits(raw + HEADER, body))


cdef bint split_checksum_is_good(const uint8_t* raw, size_t start, const uint8_t* batch, size_t length) noexcept nogil:
    """As checksum_is_good, of a body whose batch, from `start` of the frame on, lies elsewhere."""
    cdef uint64_t low = read_u64(raw + CHECKSUM), high = read_u64(raw + CHECKSUM + 8)
    cdef XXH3_state_t state
    if low == 0 and high == 0:
        return True
    XXH3_INITSTATE(&state)
    XXH3_64bits_reset(&state)
    XXH3_64bits_update(&state, raw + HEADER, start - HEADER)
    XXH3_64bits_update(&state, batch, length)
    return high == 0 and low == XXH3_64bits_digest(&state)


cdef class WireContext:
    """What the connections of a shard share. code_of: error -> status. arena: where batches of known routes go.

    revision: a route that was found under another one is forgotten. in_flight_bytes: of all of them. arriving_bytes:
    blocks of batches that are not whole yet; together the two stay below the limit.
    """

    def __init__(self, Arena arena, code_of, uint64_t in_flight_limit):
        self.arena, self.code_of, self.in_flight_limit = arena, code_of, in_flight_limit

    cdef int flush_later(self, FrameReader wire) except -1:
        """Replies are due. For those that have sockets."""
        return 0

    cdef bint take_later(
        self, FrameReader wire, uint64_t number, route, const uint8_t* batch, size_t size, uint32_t count
    ) except -1:
        """Have `hand_over` of a Wire called soon, with these. False: it is to be called now, and nothing is before it."""
        return False

    cdef int take_now(self) except -1:
        """Have what was left for later done."""
        return 0


cdef class FrameReader(Waiter):
    """The base of Wire, which says what becomes of a frame."""

    @property
    def unread_bytes(self):
        """Bytes of a frame that is not whole yet."""
        return self._head_used if self._into == NULL else self._start + self._filled

    def take_unread(self):
        """Them, for a connection that goes on elsewhere."""
        if self._into == NULL:
            taken = (<const char*>self._header)[: self._head_used]
        else:
            taken = (<const char*>self._header)[: self._start] + (<const char*>self._into)[: self._filled]
        self._head_used = 0
        self.end_frame()
        return taken

    cdef int take_bytes(self, const uint8_t* data, size_t length) except -1:
        cdef size_t used
        while length and not self.close_reason:
            used = self.take_some(data, length)
            data += used
            length -= used
        self.advance()
        return 0

    cdef size_t take_some(self, const uint8_t* data, size_t length) except? 0:
        """Take at least one byte: of the frame under way, or a whole frame, or the beginning of one."""
        cdef size_t part, size
        if self._into != NULL:
            part = min(length, self._size - self._filled)
            memcpy(self._into + self._filled, data, part)
            self.frame_grew(part)
            return part
        if self._head_used or length < HEADER:
            part = min(length, HEADER - self._head_used)
            memcpy(self._header + self._head_used, data, part)
            self._head_used += part
            self.look_at_header()
            return part
        size = self.check_header(data)
        if size == 0:
            return length
        if length < size:
            self.begin_frame(data, length, size)
            return length
        self.take_frame(data, size)
        return size

    cdef int look_at_header(self) except -1:
        cdef size_t size
        if self._head_used < HEADER:
            foreign = name_foreign_protocol((<const char*>self._header)[: min(self._head_used, <size_t>16)])
            if foreign:
                self.close_after_replies(f"first bytes look like {foreign}")
            return 0
        size = self.check_header(self._header)
        if size == 0:
            return 0
        self._head_used = 0
        if size == HEADER:
            self.take_frame(self._header, HEADER)
        else:
            self.begin_frame(self._header, HEADER, size)
        return 0

    cdef size_t check_header(self, const uint8_t* raw) except? 0:
        """The frame's size; 0: it cannot be valid, and the connection closes once all before it is answered."""
        cdef size_t size = read_u32(raw + SIZE)
        cdef bint known = raw[COMMAND] == COMMAND_REQUEST and (read_u64(raw + CLIENT) or read_u64(raw + CLIENT + 8))
        if known and HEADER <= size <= self._max_frame_bytes and read_u64(raw) == 0:
            return size
        try:  # the rare way: the specification says why
            return check_request_header(memoryview((<const char*>raw)[:HEADER]), self._max_frame_bytes)
        except ProtocolError as error:
            self.close_after_replies(str(error))
            return 0

    cdef int begin_frame(self, const uint8_t* data, size_t length, size_t size) except -1:
        cdef size_t start = self.find_batch(data, length, size)
        if start and self.make_block(size - start):
            memcpy(self._header, data, start)
            self._into = self._block.data
        else:
            start = 0
            self._frame = PyByteArray_FromStringAndSize(NULL, size)
            self._into = <uint8_t*>PyByteArray_AS_STRING(self._frame)
        self._start, self._size, self._filled = start, size - start, length - start
        memcpy(self._into, data + start, length - start)
        return 0

    cdef bint make_block(self, size_t size) except -1:
        if self.context.in_flight_bytes + self.context.arriving_bytes + size > self.context.in_flight_limit:
            return False
        try:
            self._block = self.context.arena.allocate(size)
        except ArenaFullError:  # room is made when the frame is whole
            return False
        self.context.arena.use_huge_pages(self._block)
        self.context.arriving_bytes += size
        return True

    cdef int frame_grew(self, size_t part) except -1:
        self._filled += part
        if self._filled < self._size:
            return 0
        if self._block is not None:
            return self.take_arrived()
        whole, size = self._frame, self._size
        self.end_frame()
        return self.take_frame(<const uint8_t*>PyByteArray_AS_STRING(whole), size)

    cdef int end_frame(self) except -1:
        """No frame is under way: it is whole, or nobody waits for the rest of it."""
        if self._block is not None:
            self.context.arriving_bytes -= self._size
        self._block, self._frame, self._into = None, None, NULL
        self._start = self._size = self._filled = 0
        return 0

    # What becomes of it

    cdef size_t find_batch(self, const uint8_t* raw, size_t length, size_t size) except? 0:
        """Where in a frame of `size` bytes, of which `length` are there, a batch begins that goes to a block; 0: none."""
        return 0

    cdef int take_frame(self, const uint8_t* raw, size_t size) except -1:
        """A whole one; the bytes are the caller's again afterwards."""
        raise NotImplementedError

    cdef int take_arrived(self) except -1:
        """All of a batch is in its block, and what is before it in _header."""
        raise NotImplementedError

    cdef int advance(self) except -1:
        """The bytes of one read were taken."""
        raise NotImplementedError

    cdef int close_after_replies(self, reason) except -1:
        """What came is no frame."""
        raise NotImplementedError
