"""The wire for cimport. Docstrings in wire.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Block
from shardserver.net.frame_reader cimport FrameReader
from shardserver.net.known_routes cimport KnownRoutes, Route
from shardserver.net.output cimport Output
from shardserver.net.poll_route cimport PollRoute
from shardserver.net.reply_header cimport ECHO

cdef enum Kind:
    CONFIRMED
    STATUS
    BUFFERS
    WRITTEN


cdef enum Request:  # what is done with a frame
    OTHER
    SEND
    POLL


cdef struct Slot:  # a request and, once it has completed, its reply
    uint8_t state
    uint8_t request
    uint8_t closes
    uint8_t kind
    uint8_t echo[ECHO]
    uint8_t place[12]
    uint64_t bytes
    uint64_t base  # base offset, or status
    PyObject* held  # owned: the frame while it waits, then the reply's buffers


cdef class FrameReply:
    cdef Wire _connection
    cdef uint64_t _number


cdef class Wire(FrameReader):
    cdef readonly object owner
    cdef readonly bint is_closed
    cdef readonly uint64_t in_flight_bytes
    cdef readonly uint64_t frames
    # Sends by routes in a row: _is_local: to this shard; else _crossings to another one that the owner was not told of.
    cdef bint _is_local
    cdef int _crosses_to
    cdef uint64_t _crossings
    cdef public uint64_t crossings_told
    cdef size_t _in_flight_limit
    cdef Output _output
    cdef bint _is_due
    cdef bint _advancing
    # Slots: [_head, _next) are started, [_next, _tail) wait. _others: started requests that are no sends, until released.
    cdef Slot* _slots
    cdef uint64_t _slot_room
    cdef uint64_t _head
    cdef uint64_t _next
    cdef uint64_t _tail
    cdef uint64_t _others
    cdef readonly KnownRoutes routes

    cdef bint has_room(self) noexcept
    cdef Slot* slot(self, uint64_t number) noexcept nogil
    cdef int grow_slots(self) except -1
    cdef int free_slot(self, Slot* slot) except -1
    cdef Slot* add_slot(self, const uint8_t* raw, size_t size) except NULL
    cdef bint start_next(self) except -1
    cdef int start_frame(self, uint64_t number, raw) except -1
    cdef int start_in_turn(self, uint64_t number, raw) except -1
    cdef int start_send(self, uint64_t number, const uint8_t* raw, size_t size) except -1
    cdef bint knows_send(self, const uint8_t* key, size_t length) except -1
    cdef int start_poll(self, uint64_t number, const uint8_t* raw, size_t size) except -1
    cdef PollRoute find_poll(self, const uint8_t* key, size_t length)
    cdef int note_local(self) except -1
    cdef Route find_send(self, const uint8_t* key, size_t length)
    cdef int note_direction(self, Route route) except -1
    cdef int tell_crossings(self) except -1
    cdef int send_block(self, uint64_t number, Route route, const uint8_t* raw, Block block, uint32_t count) except -1
    cdef int hand_over(self, uint64_t number, Route route, const uint8_t* batch, size_t size, uint32_t count) except -1
    cdef int use_route(self, uint64_t number, Route route) except -1
    cdef Slot* started(self, uint64_t number) noexcept
    cdef int answer_status(self, uint64_t number, uint32_t status) except -1
    cdef int done(self, Slot* slot) except -1
    cdef bint release_first(self) except -1
    cdef int drop_slots(self) except -1
    cdef int write_reply(self, Slot* slot) except -1
    cdef int due(self) except -1
