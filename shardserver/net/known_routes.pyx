"""Which routes a connection knows: from the bytes that name a partition to where its sends and polls go.

Two stages: the last one with its key at hand, then what the connections of a user share; what only this connection may
use is in a dict. All of it holds for one revision of the metadata.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from shardserver.net.poll_route cimport PollRoute
from shardserver.net.route_table cimport RouteTable
from shardserver.protocol.sends cimport Target

cdef enum:
    ROUTES_KEPT = 64

cdef RouteTable NOTHING_SHARED = RouteTable()


cdef class Route:
    """Where sends with one key (identifiers and partitioning, as their bytes) go, while the metadata has one revision.

    target: takes the batches. crosses_to: the shard that owns the partition; -1: this one.
    requests, bytes: taken since they were last asked for.
    """

    def __init__(
        self, Target target, uint64_t uid, uint32_t stream_id, uint32_t topic_id, uint32_t partition_id, crosses_to=-1
    ):
        self.target, self.uid, self.crosses_to = target, uid, crosses_to
        self._place[0], self._place[1], self._place[2] = stream_id, topic_id, partition_id

    def take_load(self):
        """(requests, bytes) since the last call."""
        taken = (self._requests, self._bytes)
        self._requests = self._bytes = 0
        return taken


cdef int keep_route(dict routes, bytes name, object found) except -1:
    if len(routes) >= ROUTES_KEPT:
        routes.clear()
    routes[name] = found
    return 0


cdef class KnownRoutes:
    """shared_sends, shared_polls: what the owner has found before, by key, for whoever may use the same; the owner sets
    them in `find_route` and `find_poll_route`. last_send: of the last key.
    """

    def __cinit__(self):
        self.forget()

    cpdef forget(self):
        self._sends, self._polls = {}, {}
        self.shared_sends = self.shared_polls = NOTHING_SHARED
        self.last_send = self._last_poll = None

    cdef int begin_revision(self, uint64_t revision) except -1:
        """What was found under another one is forgotten."""
        if self._revision != revision:
            self.forget()
            self._revision = revision
        return 0

    cdef void expect_send(self, const uint8_t* key, size_t length) noexcept:
        """It will be looked for soon: what memory has of it may come meanwhile."""
        if length <= sizeof(self._key):
            self.shared_sends.expect(key, length)

    cdef bint knows_send(self, const uint8_t* key, size_t length) except -1:
        """Makes the route the last one, if this connection has used it under this revision."""
        if self.last_send is not None and length == self._key_bytes and memcmp(key, self._key, length) == 0:
            return True
        if length > sizeof(self._key):
            return False
        found = self.shared_sends.find(key, length)
        if found is None and self._sends:
            found = self._sends.get(PyBytes_FromStringAndSize(<const char*>key, length))
        if found is not None:
            self.note_send(key, length, found)
        return found is not None

    cdef Route find_send(self, const uint8_t* key, size_t length, owner):
        if self.knows_send(key, length):
            return self.last_send
        if length > sizeof(self._key):
            return None
        name = PyBytes_FromStringAndSize(<const char*>key, length)
        if name in self._sends:
            return None
        found = owner.find_route(name)
        if self.shared_sends.find(key, length) is None:
            keep_route(self._sends, name, found)
        if found is not None:
            self.note_send(key, length, found)
        return found

    cdef int note_send(self, const uint8_t* key, size_t length, Route route) except -1:
        memcpy(self._key, key, length)
        self._key_bytes, self.last_send = length, route
        return 0

    cdef PollRoute find_poll(self, const uint8_t* key, size_t length, owner):
        if self._last_poll is not None and length == self._poll_key_bytes:
            if memcmp(key, self._poll_key, length) == 0:
                return self._last_poll
        if length > sizeof(self._poll_key):
            return None
        found = self.shared_polls.find(key, length)
        if found is None:
            found = self.find_own_poll(key, length, owner)
        if found is not None:
            memcpy(self._poll_key, key, length)
            self._poll_key_bytes, self._last_poll = length, found
        return found

    cdef object find_own_poll(self, const uint8_t* key, size_t length, owner):
        name = PyBytes_FromStringAndSize(<const char*>key, length)
        found = self._polls.get(name, False)
        if found is False:
            found = owner.find_poll_route(name)
            if self.shared_polls.find(key, length) is None:
                keep_route(self._polls, name, found)
        return found
