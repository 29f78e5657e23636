"""Routes of a connection, for cimport. Docstrings in known_routes.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.net.poll_route cimport PollRoute
from shardserver.net.route_table cimport RouteTable
from shardserver.protocol.sends cimport Target

cdef enum:
    KEY_ROOM = 600


cdef class Route:
    cdef readonly Target target
    cdef readonly uint64_t uid
    cdef readonly int crosses_to
    cdef uint32_t _place[3]
    cdef uint64_t _requests
    cdef uint64_t _bytes


cdef class KnownRoutes:
    cdef public RouteTable shared_sends
    cdef public RouteTable shared_polls
    cdef readonly Route last_send
    cdef uint64_t _revision
    # Of this connection alone.
    cdef dict _sends
    cdef dict _polls
    cdef uint8_t _key[KEY_ROOM]
    cdef size_t _key_bytes
    cdef PollRoute _last_poll
    cdef uint8_t _poll_key[1000]
    cdef size_t _poll_key_bytes

    cpdef forget(self)
    cdef int begin_revision(self, uint64_t revision) except -1
    cdef void expect_send(self, const uint8_t* key, size_t length) noexcept
    cdef bint knows_send(self, const uint8_t* key, size_t length) except -1
    cdef Route find_send(self, const uint8_t* key, size_t length, owner)
    cdef int note_send(self, const uint8_t* key, size_t length, Route route) except -1
    cdef PollRoute find_poll(self, const uint8_t* key, size_t length, owner)
    cdef object find_own_poll(self, const uint8_t* key, size_t length, owner)
