"""The wire for cimport. Docstrings in wire.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Arena, Block
from shardserver.net.output cimport Output
from shardserver.net.poll_route cimport PollRoute
from shardserver.net.route_table cimport RouteTable
from shardserver.protocol.sends cimport Target, Waiter

cdef enum:
    ECHO = 49  # bytes of a request header that its reply gives back: client, checksum, timestamp, request, operation


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


cdef class Route:
    cdef readonly Target target
    cdef readonly uint64_t uid
    cdef readonly int crosses_to
    cdef uint32_t _place[3]
    cdef uint64_t _requests
    cdef uint64_t _bytes


cdef class FrameReply:
    cdef Wire _connection
    cdef uint64_t _number


cdef class WireContext:
    cdef readonly Arena arena
    cdef readonly object code_of
    cdef public uint64_t revision
    cdef public uint64_t in_flight_bytes
    cdef readonly uint64_t arriving_bytes
    cdef readonly uint64_t in_flight_limit

    cdef int flush_later(self, Wire wire) except -1


cdef class Wire(Waiter):
    cdef WireContext context
    cdef readonly object owner
    cdef public str close_reason
    cdef readonly bint is_closed
    cdef readonly uint64_t in_flight_bytes
    cdef readonly uint64_t frames
    # Sends by routes in a row: _is_local: to this shard; else _crossings to another one that the owner was not told of.
    cdef bint _is_local
    cdef int _crosses_to
    cdef uint64_t _crossings
    cdef public uint64_t crossings_told
    cdef size_t _max_frame_bytes
    cdef size_t _in_flight_limit
    cdef Output _output
    cdef bint _is_due
    cdef bint _advancing
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
    # Slots: [_head, _next) are started, [_next, _tail) wait. _others: started requests that are no sends, until released.
    cdef Slot* _slots
    cdef uint64_t _slot_room
    cdef uint64_t _head
    cdef uint64_t _next
    cdef uint64_t _tail
    cdef uint64_t _others
    # Routes of this revision, the last one with its key at hand. _routes, _poll_routes: of this connection alone.
    cdef public RouteTable shared_routes
    cdef public RouteTable shared_polls
    cdef dict _routes
    cdef uint64_t _revision
    cdef Route _last_route
    cdef uint8_t _key[600]
    cdef size_t _key_length
    cdef dict _poll_routes
    cdef PollRoute _last_poll
    cdef uint8_t _poll_key[1000]
    cdef size_t _poll_key_length

    cdef bint has_room(self) noexcept
    cdef int take_bytes(self, const uint8_t* data, size_t length) except -1
    cdef size_t take_some(self, const uint8_t* data, size_t length) except? 0
    cdef int look_at_header(self) except -1
    cdef size_t check_header(self, const uint8_t* raw) except? 0
    cdef int close_after_replies(self, reason) except -1
    cdef int begin_frame(self, const uint8_t* data, size_t length, size_t size) except -1
    cdef size_t find_batch(self, const uint8_t* raw, size_t length, size_t size) except? 0
    cdef bint make_block(self, size_t size) except -1
    cdef int frame_grew(self, size_t part) except -1
    cdef int take_arrived(self) except -1
    cdef int end_frame(self) except -1
    cdef Slot* slot(self, uint64_t number) noexcept nogil
    cdef int grow_slots(self) except -1
    cdef int free_slot(self, Slot* slot) except -1
    cdef Slot* add_slot(self, const uint8_t* raw, size_t size) except NULL
    cdef int take_frame(self, const uint8_t* raw, size_t size) except -1
    cdef int advance(self) except -1
    cdef bint start_next(self) except -1
    cdef int start_frame(self, uint64_t number, raw) except -1
    cdef int start_send(self, uint64_t number, const uint8_t* raw, size_t size) except -1
    cdef bint knows_route(self, const uint8_t* key, size_t length) except -1
    cdef int check_revision(self) except -1
    cdef int start_poll(self, uint64_t number, const uint8_t* raw, size_t size) except -1
    cdef PollRoute find_poll_route(self, const uint8_t* key, size_t length)
    cdef object find_own_poll_route(self, const uint8_t* key, size_t length)
    cdef int note_local(self) except -1
    cdef Route find_route(self, const uint8_t* key, size_t length)
    cdef int note_route(self, const uint8_t* key, size_t length, Route route) except -1
    cdef int send_by_route(
        self, uint64_t number, Route route, const uint8_t* raw, const uint8_t* batch, size_t length, uint32_t count
    ) except -1
    cdef int note_direction(self, Route route) except -1
    cdef int tell_crossings(self) except -1
    cdef int send_block(self, uint64_t number, Route route, const uint8_t* raw, Block block, uint32_t count) except -1
    cdef int hand_over(self, uint64_t number, Route route, Block block, uint32_t count) except -1
    cdef Slot* started(self, uint64_t number) noexcept
    cdef int answer_status(self, uint64_t number, uint32_t status) except -1
    cdef int done(self, Slot* slot) except -1
    cdef bint release_first(self) except -1
    cdef int drop_slots(self) except -1
    cdef int write_reply(self, Slot* slot) except -1
    cdef void write_header(self, uint8_t* at, const Slot* slot, size_t size) noexcept
    cdef int due(self) except -1
