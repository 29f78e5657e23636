"""The data plane for cimport. Docstrings in plane.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Arena

cdef enum:
    ECHO = 49  # bytes of a request header that its reply gives back: client, checksum, timestamp, request, operation


cdef enum Kind:
    CONFIRMED
    STATUS
    BUFFERS


cdef struct Slot:  # a request and, once it has completed, its reply
    uint8_t state
    uint8_t is_send
    uint8_t closes
    uint8_t kind
    uint8_t echo[ECHO]
    uint8_t place[12]
    uint64_t bytes
    uint64_t base  # base offset, or status
    PyObject* held  # owned: the frame while it waits, then the reply's buffers


cdef struct Piece:  # held NULL: `start` in the output's own bytes
    const uint8_t* held
    size_t start
    size_t length


cdef class Route:
    cdef readonly object append
    cdef readonly uint64_t uid
    cdef uint32_t _place[3]
    cdef uint64_t _requests
    cdef uint64_t _bytes


cdef class SendReply:
    cdef PlaneConnection _connection
    cdef uint64_t _number
    cdef Route _route


cdef class FrameReply:
    cdef PlaneConnection _connection
    cdef uint64_t _number


cdef class Output:
    cdef uint8_t* _bytes
    cdef size_t _used
    cdef size_t _room
    cdef Piece* _pieces
    cdef size_t _first
    cdef size_t _count
    cdef size_t _piece_room
    cdef list _kept
    cdef readonly size_t total

    cdef uint8_t* claim(self, size_t size) except NULL
    cdef int add_piece(self, const uint8_t* held, size_t length) except -1
    cdef int add(self, buffer) except -1
    cdef int send(self, int fd) except -2
    cdef size_t gather(self, void* vectors) noexcept
    cdef int drop(self, size_t sent) except -1
    cdef int clear(self) except -1
    cdef bytes joined(self)


cdef class PlaneConnection:
    cdef Plane plane
    cdef readonly object owner
    cdef readonly int fd
    cdef public str close_reason
    cdef readonly bint is_closed
    cdef readonly bint is_broken
    cdef public bint stopped
    cdef public bint wants_owner
    cdef readonly uint64_t in_flight_bytes
    cdef readonly uint64_t frames
    cdef bint blocked
    cdef bint _is_local
    cdef size_t _max_frame_bytes
    cdef size_t _in_flight_limit
    cdef Output _output
    cdef bint _is_due
    cdef bint _advancing
    cdef uint32_t _watched
    # Bytes of the frame under way: its header, or all of it.
    cdef uint8_t _header[256]
    cdef size_t _head_used
    cdef object _frame
    cdef size_t _size
    cdef size_t _filled
    # Slots: [_head, _next) are started, [_next, _tail) wait. _others: started requests that are no sends.
    cdef Slot* _slots
    cdef uint64_t _slot_room
    cdef uint64_t _head
    cdef uint64_t _next
    cdef uint64_t _tail
    cdef uint64_t _others
    # Routes of this revision, the last one with its key at hand.
    cdef dict _routes
    cdef uint64_t _revision
    cdef Route _last_route
    cdef uint8_t _key[600]
    cdef size_t _key_length

    cdef int take_bytes(self, const uint8_t* data, size_t length) except -1
    cdef size_t take_some(self, const uint8_t* data, size_t length) except? 0
    cdef int look_at_header(self) except -1
    cdef size_t check_header(self, const uint8_t* raw) except? 0
    cdef int refuse(self, reason) except -1
    cdef int begin_frame(self, const uint8_t* data, size_t length, size_t size) except -1
    cdef int frame_grew(self, size_t part) except -1
    cdef Slot* slot(self, uint64_t number) noexcept nogil
    cdef int grow_slots(self) except -1
    cdef int free_slot(self, Slot* slot) except -1
    cdef int take_frame(self, const uint8_t* raw, size_t size) except -1
    cdef int advance(self) except -1
    cdef bint start_next(self) except -1
    cdef int start_frame(self, uint64_t number, raw) except -1
    cdef int start_send(self, uint64_t number, const uint8_t* raw, size_t size) except -1
    cdef Route find_route(self, const uint8_t* key, size_t length)
    cdef int send_by_route(
        self, uint64_t number, Route route, const uint8_t* raw, const uint8_t* batch, size_t length, uint32_t count
    ) except -1
    cdef Slot* started(self, uint64_t number) noexcept
    cdef int answer_send(self, uint64_t number, Route route, uint64_t base) except -1
    cdef int answer_status(self, uint64_t number, uint32_t status) except -1
    cdef int done(self, Slot* slot) except -1
    cdef bint release_first(self) except -1
    cdef int drop_slots(self) except -1
    cdef int write_reply(self, Slot* slot) except -1
    cdef int due(self) except -1
    cdef int flush(self) except -1
    cdef int fail(self, reason) except -1
    cdef int watch(self) except -1
    cdef int on_ready(self, uint32_t events) except -1
    cdef ssize_t receive(self) except -2


cdef class Plane:
    cdef readonly Arena arena
    cdef readonly object code_of
    cdef public uint64_t revision
    cdef public uint64_t in_flight_bytes
    cdef readonly uint64_t in_flight_limit
    cdef int epoll
    cdef uint8_t* scratch
    cdef list _due
    cdef list _starved
    cdef object _schedule
    cdef bint _draining
    cdef bint _flush_scheduled

    cdef int control(self, PlaneConnection connection, int operation, uint32_t events) except -1
    cdef int flush_later(self, PlaneConnection connection) except -1
    cdef int starve(self, PlaneConnection connection) except -1
