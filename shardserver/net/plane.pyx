"""The data plane: sockets in an epoll set of their own, one call for all that are ready.

A drain serves a bounded number of sockets and reads a bounded number of bytes of each. The set is edge-triggered, else
the kernel asks each socket a second time to find it empty: a socket that may hold more is put into the set again, which
tells of it once more. Replies of a connection that are due together leave in one send.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

import logging
import os

from shardserver.memory.prefetch cimport prefetch_bytes
from shardserver.net.frame_reader cimport FrameReader, WireContext
from shardserver.net.known_routes cimport Route
from shardserver.net.socket_calls cimport bare_recv
from shardserver.net.wire cimport Wire

log = logging.getLogger(__name__)

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void* ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLLET

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t recvmsg(int fd, msghdr* msg, int flags)
    enum:
        MSG_DONTWAIT

cdef enum:
    TARGET_BYTES = 472  # what a send touches of a partition's log (AppendLog), from its reference count on
    SCRATCH = 256 * 1024  # what one socket may bring in one drain, when its frames are small
    DIRECT = 16 * 1024  # so much of a frame is worth being read to where it stays
    HEAD = 4096  # read behind a large frame: what comes before the batch of the next one
    PASS = 1 << 20
    # A drain ends behind so many sockets or bytes, looked at as often as it asks which sockets are ready: small requests
    # of many connections come into one journal write, and large ones keep the loop for some milliseconds, not for 256 MiB.
    EVENTS = 256
    DRAIN_BYTES = 16 << 20
    AT_ONCE = 64
    WRITE_HIGH = 1 << 20


cdef class PlaneConnection(Wire):
    """A wire with its socket. fd: -1 before it is added to the plane and after it is removed."""

    def __cinit__(self, plane, owner, max_frame_bytes, in_flight_limit):
        self.plane, self.fd = plane, -1

    cdef int flush(self) except -1:
        """Send what is due, and look whether to go on reading."""
        cdef int outcome
        self._is_due = False
        if self.fd < 0:
            return 0
        outcome = self._output.send(self.fd)
        if outcome < 0:
            self.fail("the peer closed")
            return 0
        self.blocked = outcome == 1
        if self.close_reason and (self._head == self._tail or self.is_closed) and self._output.total == 0:
            self.owner.on_change()
        elif self.wants_owner:
            self.owner.on_change()
        self.watch()
        return 0

    cdef int fail(self, reason) except -1:
        self.is_broken = True
        self.close_reason = self.close_reason or reason
        self.owner.on_change()
        return 0

    cdef int watch(self) except -1:
        """Backpressure: read only while this connection, the shard and the socket's own output have room."""
        cdef uint32_t wanted = 0
        if self.fd < 0:
            return 0
        if self.may_read():
            wanted = EPOLLIN | EPOLLRDHUP
        if self.blocked:
            wanted |= EPOLLOUT
        if wanted != self._watched or self._may_hold_more:
            self._may_hold_more = False
            self.plane.control(self, EPOLL_CTL_MOD, wanted)
        return 0

    cdef bint may_read(self) except -1:
        if not self.has_room() or self.stopped or self._output.total >= WRITE_HIGH:
            return False
        if self.plane.in_flight_bytes < self.plane.in_flight_limit or self.in_flight_bytes == 0:
            return True
        self.plane.starve(self)
        return False

    def update(self):
        """Call after `stopped` or `wants_owner` has changed."""
        self.watch()

    cdef int on_ready(self, uint32_t events) except -1:
        cdef bint is_open, is_over = (events & (EPOLLERR | EPOLLHUP)) != 0
        cdef ssize_t got
        if events & EPOLLOUT:
            self.flush()
        is_open = self.may_read()
        # The end of the stream is behind the bytes that are read now. Who may not read now is told when it may again.
        self._may_hold_more = is_over or (events & EPOLLRDHUP) != 0
        if self.fd >= 0 and (is_over or (is_open and events & EPOLLIN)):
            got = self.receive()
            self.plane._received += max(got, 0)
            if got < 0 and errno == EINTR:
                self._may_hold_more = True
            elif got == 0 or (got < 0 and errno != EAGAIN):
                self.fail("the peer closed")
        if self.fd >= 0:
            self.watch()
        return 0

    cdef ssize_t receive(self) except -2:
        """Read what is there, at most about PASS bytes of a large frame. As recv: 0 and below: nothing was read."""
        cdef size_t rest, more
        cdef ssize_t got, total = 0
        while True:
            rest = self._size - self._filled if self._into != NULL else 0
            more = HEAD if rest >= DIRECT or (self._after_large and self._into == NULL) else SCRATCH
            if rest < DIRECT:
                rest = 0
            self._after_large = rest > 0
            got = self.receive_split(rest, more)
            if got <= 0:
                return total if total else got
            total += got
            if <size_t>got < rest + more:  # a socket gives all that it has
                return total
            if total >= PASS or self._into == NULL or not self.may_read():
                self._may_hold_more = True
                return total

    cdef ssize_t receive_split(self, size_t rest, size_t more) except -2:
        """One read: `rest` bytes of a large frame to where they stay, `more` to be parsed where they were read."""
        cdef iovec vectors[2]
        cdef msghdr message
        cdef uint8_t* scratch = self.plane.free_scratch()
        cdef ssize_t got
        if rest == 0:
            got = bare_recv(self.fd, scratch, more, MSG_DONTWAIT)
        else:
            memset(&message, 0, sizeof(message))
            vectors[0].iov_base, vectors[0].iov_len = self._into + self._filled, rest
            vectors[1].iov_base, vectors[1].iov_len = scratch, more
            message.msg_iov, message.msg_iovlen = vectors, 2
            got = recvmsg(self.fd, &message, MSG_DONTWAIT)
        if got <= 0:
            return got
        if rest:
            self.frame_grew(min(<size_t>got, rest))
        self.take_bytes(scratch, got - rest if <size_t>got > rest else 0)
        return got


cdef class Plane(WireContext):
    """All sockets of one shard."""

    def __cinit__(self, arena, code_of, in_flight_limit):
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.scratch = <uint8_t*>malloc(SCRATCHES * SCRATCH)
        if self.scratch == NULL:
            raise MemoryError
        self._due, self._starved = [], []
        self._schedule = None

    def __dealloc__(self):
        free(self.scratch)

    def fileno(self):
        """Readable when a socket is: for the loop to watch."""
        return self.epoll

    def set_schedule(self, schedule):
        """schedule(flush): call it at the end of this turn of the loop."""
        self._schedule = schedule

    def add(self, PlaneConnection connection, int fd):
        """Serve a socket; the descriptor stays the caller's."""
        connection.fd = fd
        connection._watched = 0
        self.control(connection, EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP)

    def remove(self, PlaneConnection connection):
        """No more of it: before its descriptor is closed."""
        if connection.fd >= 0:
            self.control(connection, EPOLL_CTL_DEL, 0)
            connection.fd = -1

    cdef int control(self, PlaneConnection connection, int operation, uint32_t events) except -1:
        cdef epoll_event event
        event.events = events | EPOLLET
        event.data.ptr = <void*>connection
        if epoll_ctl(self.epoll, operation, connection.fd, &event) < 0 and operation != EPOLL_CTL_DEL:
            raise OSError(errno, os.strerror(errno))
        connection._watched = events
        return 0

    def drain(self):
        """Serve the sockets that are ready, not without end; one send for each that has something to say."""
        cdef int served = 0, count = AT_ONCE
        self._draining, self._received = True, 0
        while count == AT_ONCE and served < EVENTS and self._received < DRAIN_BYTES:
            count = self.serve_ready()
            served += count
        self.take_now()
        self._draining = False
        self.flush()

    cdef int serve_ready(self) except -1:
        """Gives of how many sockets."""
        cdef epoll_event events[AT_ONCE]
        cdef int index, count
        cdef PlaneConnection connection
        count = epoll_wait(self.epoll, events, AT_ONCE, 0)
        # Held for the round: a connection may be removed by what another one's bytes do.
        held = [<PlaneConnection>events[index].data.ptr for index in range(count)]
        for index in range(count):
            connection = held[index]
            if connection.fd < 0:
                continue
            try:
                connection.on_ready(events[index].events)
            except Exception as error:  # a bug must not end the shard: this connection closes, the others go on
                log.exception("connection_failed")
                connection.fail("a request failed inside the server")
        return max(count, 0)

    # Sends on their way

    cdef inline Taken* waiting(self, int number) noexcept:
        return self._taken + (self._taken_first + number) % LATER

    cdef uint8_t* free_scratch(self) noexcept:
        """Memory to read to, in which no batch waits: those that do are in the last ones that were read to."""
        if self._taken_count and self.waiting(self._taken_count - 1).scratch == self._scratch:
            self._scratch = (self._scratch + 1) % SCRATCHES
        return self.scratch + self._scratch * SCRATCH

    cdef bint take_later(
        self, FrameReader wire, uint64_t number, route, const uint8_t* batch, size_t size, uint32_t count
    ) except -1:
        """Of thousands of partitions none is in the processor's cache: what a send needs of its own comes while the next
        sockets are read. In order of arrival, and none is left when the drain ends.
        """
        cdef Taken* taken
        cdef const uint8_t* scratch = self.scratch + self._scratch * SCRATCH
        if not self._draining or batch < scratch or batch >= scratch + SCRATCH:  # pieced together elsewhere
            self.take_now()
            return False
        if self._taken_count == LATER:
            self.take_first()
        if self._taken_count > 1:
            taken = self.waiting(self._taken_count - 2)
            (<Route>taken.route).target.expect(taken.size)
        if self._taken_count:
            prefetch_bytes(<void*>(<Route>self.waiting(self._taken_count - 1).route).target, TARGET_BYTES)
        taken = self.waiting(self._taken_count)
        taken.wire, taken.route = <PyObject*>wire, <PyObject*>route
        taken.batch, taken.size, taken.scratch = batch, size, self._scratch
        taken.number, taken.count = number, count
        Py_INCREF(wire)
        Py_INCREF(route)
        self._taken_count += 1
        return True

    cdef int take_now(self) except -1:
        while self._taken_count:
            self.take_first()
        return 0

    cdef int take_first(self) except -1:
        """The next ones may be taken from in here."""
        cdef Taken taken = self._taken[self._taken_first]
        cdef PlaneConnection connection = <PlaneConnection>taken.wire
        route = <Route>taken.route
        Py_DECREF(connection)
        Py_DECREF(route)
        self._taken_first = (self._taken_first + 1) % LATER
        self._taken_count -= 1
        try:
            connection.hand_over(taken.number, route, taken.batch, taken.size, taken.count)
        except Exception as error:  # as in drain
            log.exception("connection_failed")
            connection.fail("a request failed inside the server")
        return 0

    cdef int flush_later(self, FrameReader connection) except -1:
        self._due.append(connection)
        if not self._draining and not self._flush_scheduled and self._schedule is not None:
            self._flush_scheduled = True
            self._schedule(self.flush)
        return 0

    def flush(self):
        """One send for each connection that has replies due."""
        cdef PlaneConnection connection
        self._flush_scheduled = False
        due, self._due = self._due, []
        for connection in due:
            try:
                connection.flush()
            except Exception as error:  # as in drain
                log.exception("connection_failed")
                connection.fail("a request failed inside the server")
        if self._starved and self.in_flight_bytes < self.in_flight_limit:
            starved, self._starved = self._starved, []
            for connection in starved:
                connection.watch()

    cdef int starve(self, PlaneConnection connection) except -1:
        """The shard has no room: look again when some replies have left."""
        if connection not in self._starved:
            self._starved.append(connection)
        return 0

    def close(self):
        os.close(self.epoll)
