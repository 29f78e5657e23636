"""The data plane: sockets in an epoll set of their own, one call per wake-up, requests started and answered in order.

machine.py is the specification of what one connection does with its bytes; both pass one suite. A send whose route is
known (route.py) is verified, copied into the arena and appended without Python; all else is handed over as a Frame.
Replies of a connection that are due together leave in one send.

A drain serves a bounded number of sockets and reads a bounded number of bytes of each; epoll is level-triggered, so
what is left comes again. Every length from a socket is checked against what is there before it is used.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

import logging
import os

from shardserver.errors import ArenaFullError, ProtocolError, ShardServerError
from shardserver.protocol.frame import Frame, RequestHeader, check_request_header, name_foreign_protocol

from shardserver.memory.arena cimport Arena, Block
from shardserver.protocol.batch cimport verify

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

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t recv(int fd, void* buf, size_t len, int flags)
    ssize_t sendmsg(int fd, const msghdr* msg, int flags)
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL

cdef extern from "xxhash.h" nogil:
    uint64_t XXH3_64bits(const void *data, size_t length)

cdef enum:
    HEADER = 256
    OP_SEND = 160
    SCRATCH = 256 * 1024  # what one socket may bring in one drain, when its frames are small
    EVENTS = 256
    IOVECS = 64
    COPIED = 16384  # shorter buffers of a reply are copied beside their neighbours
    WRITE_HIGH = 1 << 20
    # Of a request header (framing 2) and of a reply header (framing 3).
    SIZE = 48
    COMMAND = 60
    CLIENT = 128
    CHECKSUM = 144
    OPERATION = 176
    REPLY_CHECKSUM = 128
    REPLY_CLIENT = 160
    REPLY_TIMESTAMP = 192
    REPLY_OPERATION = 208
    REPLY_STATUS = 216
    COMMAND_REQUEST = 5
    COMMAND_REPLY = 8

cdef enum SlotState:
    WAITING
    STARTED
    DONE


cdef inline uint64_t read_u64(const uint8_t* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef inline uint32_t read_u32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline void write_u32(uint8_t* at, uint32_t value) noexcept nogil:
    memcpy(at, &value, 4)


cdef inline void write_u64(uint8_t* at, uint64_t value) noexcept nogil:
    memcpy(at, &value, 8)


cdef inline bint checksum_is_good(const uint8_t* raw, size_t body) noexcept nogil:
    """The request's checksum of its body, when it carries one (framing 4): XXH3-64 in 16 bytes."""
    cdef uint64_t low = read_u64(raw + CHECKSUM), high = read_u64(raw + CHECKSUM + 8)
    return (low == 0 and high == 0) or (high == 0 and low == XXH3_64bits(raw + HEADER, body))


cdef class Route:
    """Where sends with one key (identifiers and partitioning, as their bytes) go, while the metadata has one revision.

    append: PartitionLog.append. requests, bytes: taken since they were last asked for.
    """

    def __init__(self, append, uint64_t uid, uint32_t stream_id, uint32_t topic_id, uint32_t partition_id):
        self.append, self.uid = append, uid
        self._place[0], self._place[1], self._place[2] = stream_id, topic_id, partition_id

    def take_load(self):
        """(requests, bytes) since the last call."""
        taken = (self._requests, self._bytes)
        self._requests = self._bytes = 0
        return taken


cdef class SendReply:
    """The `done` of one send: what its partition calls."""

    def __call__(self, outcome):
        if isinstance(outcome, int):
            self._connection.answer_send(self._number, self._route, outcome)
        else:
            self._connection.answer_error(self._number, outcome)


cdef class FrameReply:
    """The reply callable of one request that Python serves. Called once."""

    def __call__(self, buffers, closes):
        self._connection.answer_buffers(self._number, buffers, closes)


cdef class Output:
    """Bytes on their way to one socket: small ones copied together, large buffers held until they have left."""

    def __cinit__(self):
        self._kept = []

    def __dealloc__(self):
        free(self._bytes)
        free(self._pieces)

    cdef uint8_t* claim(self, size_t size) except NULL:
        """Room for `size` bytes at the end."""
        cdef size_t wanted = self._used + size
        cdef uint8_t* grown
        if wanted > self._room:
            wanted = max(wanted, 2 * self._room, <size_t>4096)
            grown = <uint8_t*>realloc(self._bytes, wanted)
            if grown == NULL:
                raise MemoryError
            self._bytes, self._room = grown, wanted
        if self._count == 0 or self._pieces[self._count - 1].held:
            self.add_piece(NULL, 0)
            self._pieces[self._count - 1].start = self._used
        self._pieces[self._count - 1].length += size
        self._used += size
        self.total += size
        return self._bytes + self._used - size

    cdef int add_piece(self, const uint8_t* held, size_t length) except -1:
        cdef size_t room
        cdef Piece* grown
        if self._count == self._piece_room:
            room = max(2 * self._piece_room, <size_t>8)
            grown = <Piece*>realloc(self._pieces, room * sizeof(Piece))
            if grown == NULL:
                raise MemoryError
            self._pieces, self._piece_room = grown, room
        self._pieces[self._count].held = held
        self._pieces[self._count].start = 0
        self._pieces[self._count].length = length
        self._count += 1
        return 0

    cdef int add(self, buffer) except -1:
        """Any contiguous buffer; it must not change until it has left."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if view.len <= COPIED:
                memcpy(self.claim(view.len), view.buf, view.len)
            else:
                held = memoryview(buffer)  # keeps the exporter, whatever becomes of the caller's reference
                self.add_piece(<const uint8_t*>view.buf, view.len)
                self._kept.append(held)
                self.total += view.len
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef int send(self, int fd) except -2:
        """0: all has left. 1: the socket takes no more now. -1: it is broken."""
        cdef iovec vectors[IOVECS]
        cdef msghdr message
        cdef ssize_t sent
        while self.total:
            memset(&message, 0, sizeof(message))
            message.msg_iov = vectors
            message.msg_iovlen = self.gather(vectors)
            sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent < 0:
                if errno == EINTR:
                    continue
                return 1 if errno == EAGAIN else -1
            self.drop(sent)
        return 0

    cdef size_t gather(self, void* into) noexcept:
        cdef iovec* vectors = <iovec*>into
        cdef size_t index, count = min(self._count - self._first, <size_t>IOVECS)
        cdef Piece* piece
        for index in range(count):
            piece = self._pieces + self._first + index
            vectors[index].iov_base = <void*>(piece.held if piece.held != NULL else self._bytes + piece.start)
            vectors[index].iov_len = piece.length
        return count

    cdef int drop(self, size_t sent) except -1:
        cdef Piece* piece
        self.total -= sent
        while sent:
            piece = self._pieces + self._first
            if sent < piece.length:
                if piece.held != NULL:
                    piece.held += sent
                else:
                    piece.start += sent
                piece.length -= sent
                return 0
            sent -= piece.length
            if piece.held != NULL:
                self._kept.pop(0)
            self._first += 1
        if self.total == 0:
            self.clear()
        return 0

    cdef int clear(self) except -1:
        self._used = self._count = self._first = self.total = 0
        self._kept = []
        return 0

    cdef bytes joined(self):
        """A copy of all, which counts as sent."""
        cdef iovec vectors[IOVECS]
        cdef size_t index, count
        parts = []
        while self.total:
            count = self.gather(vectors)
            taken = b"".join([(<const char*>vectors[index].iov_base)[: vectors[index].iov_len] for index in range(count)])
            parts.append(taken)
            self.drop(len(taken))
        return b"".join(parts)


cdef class PlaneConnection:
    """One connection without its life: bytes in, requests started in the right order, replies out in order of arrival.

    owner: asked `start(frame, reply)`, `find_route(key)` -> Route | None; told `note_local()`, once in a row of sends by
    routes, and `on_change()` when it may have to act: the connection has ended, or `wants_owner` and something left.
    Consecutive sends overlap; any other request starts when all earlier ones have completed.
    """

    def __cinit__(self, Plane plane, owner, size_t max_frame_bytes, size_t in_flight_limit):
        self.plane, self.owner = plane, owner
        self._max_frame_bytes, self._in_flight_limit = max_frame_bytes, in_flight_limit
        self.fd = -1
        self.close_reason = ""
        self._output = Output()
        self._routes = {}

    def __dealloc__(self):
        while self._head != self._tail:
            self.free_slot(self.slot(self._head))
            self._head += 1
        free(self._slots)

    # What others see of it

    @property
    def unread_bytes(self):
        """Bytes of a frame that is not whole yet."""
        return self._head_used if self._frame is None else self._filled

    def take_unread(self):
        """Them, for a connection that goes on elsewhere."""
        if self._frame is None:
            taken = (<const char*>self._header)[: self._head_used]
        else:
            taken = bytes(memoryview(self._frame)[: self._filled])
        self._head_used, self._frame, self._filled = 0, None, 0
        return taken

    @property
    def is_idle(self):
        return self._head == self._tail and self._output.total == 0

    @property
    def wants_more(self):
        """False: read no more from this socket until replies have left."""
        return not self.close_reason and self.in_flight_bytes < self._in_flight_limit

    @property
    def unsent_bytes(self):
        return self._output.total

    def take_output(self):
        """Reply bytes that are due, in order. For tests, and for transports that are no socket of the plane."""
        joined = self._output.joined()
        return [joined] if joined else []

    def feed(self, data):
        """Take bytes; what can start, starts."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.take_bytes(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def close(self, reason):
        """Answer nothing more; late completions are ignored."""
        self.close_reason = self.close_reason or reason
        self.drop_slots()
        self._output.clear()
        self._frame = None
        self.forget_routes()
        self.owner = None  # no cycle may keep what was held

    def forget_routes(self):
        self._routes = {}
        self._last_route = None

    # Bytes to frames

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
        if self._frame is not None:
            part = min(length, self._size - self._filled)
            memcpy(<uint8_t*>PyByteArray_AS_STRING(self._frame) + self._filled, data, part)
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
                self.refuse(f"first bytes look like {foreign}")
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
            self.refuse(str(error))
            return 0

    cdef int refuse(self, reason) except -1:
        self.close_reason = self.close_reason or reason
        self.due()
        return 0

    cdef int begin_frame(self, const uint8_t* data, size_t length, size_t size) except -1:
        self._frame = PyByteArray_FromStringAndSize(NULL, size)
        self._size, self._filled = size, 0
        memcpy(PyByteArray_AS_STRING(self._frame), data, length)
        self._filled = length
        return 0

    cdef int frame_grew(self, size_t part) except -1:
        self._filled += part
        if self._filled == self._size:
            whole, self._frame = self._frame, None
            self.take_frame(<const uint8_t*>PyByteArray_AS_STRING(whole), self._size)
        return 0

    # Frames to slots

    cdef inline Slot* slot(self, uint64_t number) noexcept nogil:
        return self._slots + (number & (self._slot_room - 1))

    cdef int grow_slots(self) except -1:
        cdef uint64_t room = max(<uint64_t>16, 2 * self._slot_room), number
        cdef Slot* grown = <Slot*>malloc(room * sizeof(Slot))
        if grown == NULL:
            raise MemoryError
        number = self._head
        while number != self._tail:
            grown[number & (room - 1)] = self.slot(number)[0]
            number += 1
        free(self._slots)
        self._slots, self._slot_room = grown, room
        return 0

    cdef int free_slot(self, Slot* slot) except -1:
        if slot.held != NULL:
            Py_DECREF(<object>slot.held)
            slot.held = NULL
        return 0

    cdef int take_frame(self, const uint8_t* raw, size_t size) except -1:
        cdef Slot* slot
        if self._tail - self._head == self._slot_room:
            self.grow_slots()
        slot = self.slot(self._tail)
        memset(slot, 0, sizeof(Slot))
        slot.bytes, slot.is_send = size, raw[OPERATION] == OP_SEND
        self._tail += 1
        self.frames += 1
        self.in_flight_bytes += size
        self.plane.in_flight_bytes += size
        if slot.is_send and self._next == self._tail - 1 and self._others == 0:
            self._next += 1
            slot.state = STARTED
            self.start_send(self._tail - 1, raw, size)
        else:
            frame = PyBytes_FromStringAndSize(<const char*>raw, size)
            Py_INCREF(frame)
            slot.held = <PyObject*>frame
        return 0

    cdef int advance(self) except -1:
        """Start what may start, release what is due. A request that completes at once comes back into here."""
        if self._advancing:
            return 0
        self._advancing = True
        try:
            while self.start_next() or self.release_first():
                pass
        finally:
            self._advancing = False
        return 0

    cdef bint start_next(self) except -1:
        cdef Slot* slot
        cdef uint64_t number = self._next
        if number == self._tail or self._others:
            return False
        slot = self.slot(number)
        if not slot.is_send and number != self._head:
            return False
        self._next += 1
        slot.state = STARTED
        self._others += not slot.is_send
        raw = <bytes>slot.held
        slot.held = NULL
        try:
            if slot.is_send:
                self.start_send(number, <const uint8_t*>PyBytes_AS_STRING(raw), len(raw))
            else:
                self.start_frame(number, raw)
        finally:
            Py_DECREF(raw)
        return True

    cdef int start_frame(self, uint64_t number, raw) except -1:
        cdef FrameReply reply = FrameReply.__new__(FrameReply)
        view = memoryview(raw)
        reply._connection, reply._number = self, number
        self._is_local = False
        self.owner.start(Frame(RequestHeader.decode(view), view[HEADER:]), reply)
        return 0

    # Sends

    cdef int start_send(self, uint64_t number, const uint8_t* raw, size_t size) except -1:
        """By a known route without Python; else as any other frame."""
        cdef uint32_t length, count
        cdef size_t body = size - HEADER
        cdef Route route = None
        if body >= 8:
            length = read_u32(raw + HEADER)
            if 4 <= length <= body - 4:
                route = self.find_route(raw + HEADER + 4, length - 4)
        if route is None or not checksum_is_good(raw, body):
            self.start_frame(number, PyBytes_FromStringAndSize(<const char*>raw, size))
            return 0
        count = read_u32(raw + HEADER + length)
        self.send_by_route(number, route, raw, raw + HEADER + 4 + length, body - 4 - length, count)
        return 0

    cdef Route find_route(self, const uint8_t* key, size_t length):
        if self._revision != self.plane.revision:
            self.forget_routes()
            self._revision = self.plane.revision
        if self._last_route is not None and length == self._key_length and memcmp(key, self._key, length) == 0:
            return self._last_route
        if length > sizeof(self._key):
            return None
        name = PyBytes_FromStringAndSize(<const char*>key, length)
        found = self._routes.get(name, False)
        if found is False:
            found = self.owner.find_route(name)
            if len(self._routes) >= 64:
                self._routes.clear()
            self._routes[name] = found
        if found is not None:
            memcpy(self._key, key, length)
            self._key_length, self._last_route = length, found
        return found

    cdef int send_by_route(
        self, uint64_t number, Route route, const uint8_t* raw, const uint8_t* batch, size_t length, uint32_t count
    ) except -1:
        cdef Slot* slot = self.slot(number)
        cdef int code
        cdef Block block
        cdef SendReply done
        memcpy(slot.echo, raw + CLIENT, ECHO)
        with nogil:
            code = verify(batch, length, count)
        if code:
            self.answer_status(number, code)
            return 0
        try:
            block = self.plane.arena.copy_bytes(batch, length)
        except ArenaFullError:  # Python makes room, or refuses
            self.start_frame(number, PyBytes_FromStringAndSize(<const char*>raw, batch + length - raw))
            return 0
        done = SendReply.__new__(SendReply)
        done._connection, done._number, done._route = self, number, route
        route._requests += 1
        route._bytes += length
        if not self._is_local:
            self._is_local = True
            self.owner.note_local()
        try:
            route.append(block, count, done)
        except ShardServerError as error:
            self.answer_error(number, error)
        return 0

    # Replies

    cdef Slot* started(self, uint64_t number) noexcept:
        """The slot of a request that waits for its reply; NULL: the connection is closed, or it has been answered."""
        cdef Slot* slot
        if self.is_closed or number < self._head or number >= self._next:
            return NULL
        slot = self.slot(number)
        return slot if slot.state == STARTED else NULL

    cdef int answer_send(self, uint64_t number, Route route, uint64_t base) except -1:
        cdef Slot* slot = self.started(number)
        if slot == NULL:
            return 0
        slot.base = base
        memcpy(slot.place, route._place, 12)
        slot.kind = CONFIRMED
        return self.done(slot)

    cdef int answer_status(self, uint64_t number, uint32_t status) except -1:
        cdef Slot* slot = self.started(number)
        if slot == NULL:
            return 0
        slot.base, slot.kind = status, STATUS
        return self.done(slot)

    def answer_error(self, uint64_t number, error):
        self.answer_status(number, self.plane.code_of(error))

    def answer_buffers(self, uint64_t number, buffers, closes):
        cdef Slot* slot = self.started(number)
        if slot == NULL:
            return
        Py_INCREF(buffers)
        slot.held, slot.kind, slot.closes = <PyObject*>buffers, BUFFERS, closes
        self.done(slot)

    cdef int done(self, Slot* slot) except -1:
        slot.state = DONE
        self._others -= not slot.is_send
        if not self._advancing:
            self.advance()
        return 0

    cdef bint release_first(self) except -1:
        cdef Slot* slot
        cdef bint closes
        if self._head == self._tail or self.slot(self._head).state != DONE:
            return False
        slot = self.slot(self._head)
        self.write_reply(slot)
        closes = slot.closes
        self.in_flight_bytes -= slot.bytes
        self.plane.in_flight_bytes -= slot.bytes
        self.free_slot(slot)
        self._head += 1
        self.due()
        if closes:
            self.close_reason = self.close_reason or "a request failed inside the server"
            self.drop_slots()
        return True

    cdef int drop_slots(self) except -1:
        self.is_closed = True
        self.plane.in_flight_bytes -= self.in_flight_bytes
        self.in_flight_bytes = 0
        while self._head != self._tail:
            self.free_slot(self.slot(self._head))
            self._head += 1
        self._next, self._others = self._tail, 0
        return 0

    cdef int write_reply(self, Slot* slot) except -1:
        cdef uint8_t* at
        cdef size_t size
        if slot.kind == BUFFERS:
            for one in <object>slot.held:
                self._output.add(one)
            return 0
        size = HEADER + 24 if slot.kind == CONFIRMED else HEADER
        at = self._output.claim(size)
        memset(at, 0, size)
        write_u32(at + SIZE, size)
        at[COMMAND] = COMMAND_REPLY
        memcpy(at + REPLY_CHECKSUM, slot.echo + CHECKSUM - CLIENT, 16)
        memcpy(at + REPLY_CLIENT, slot.echo, 16)
        memcpy(at + REPLY_TIMESTAMP, slot.echo + 32, 16)  # and the request's number
        at[REPLY_OPERATION] = OP_SEND
        if slot.kind == STATUS:
            write_u32(at + REPLY_STATUS, slot.base)
        else:  # one confirmation: stream, topic, partition, base offset (messages 3.3)
            write_u32(at + HEADER, 1)
            memcpy(at + HEADER + 4, slot.place, 12)
            write_u64(at + HEADER + 16, slot.base)
        return 0

    cdef int due(self) except -1:
        """Bytes may leave at the end of this drain or turn."""
        if not self._is_due:
            self._is_due = True
            self.plane.flush_later(self)
        return 0

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
        cdef bint room = self.plane.in_flight_bytes < self.plane.in_flight_limit or self.in_flight_bytes == 0
        if self.fd < 0:
            return 0
        if self.wants_more and not self.stopped and self._output.total < WRITE_HIGH:
            if room:
                wanted = EPOLLIN
            else:
                self.plane.starve(self)
        if self.blocked:
            wanted |= EPOLLOUT
        if wanted != self._watched:
            self.plane.control(self, EPOLL_CTL_MOD, wanted)
        return 0

    def update(self):
        """Call after `stopped` or `wants_owner` has changed."""
        self.watch()

    cdef int on_ready(self, uint32_t events) except -1:
        cdef ssize_t got
        if events & EPOLLOUT:
            self.flush()
        if self.fd >= 0 and events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            got = self.receive()
            if got == 0:
                self.fail("the peer closed")
            elif got < 0 and errno != EAGAIN and errno != EINTR:
                self.fail("the peer closed")
        if self.fd >= 0:
            self.watch()
        return 0

    cdef ssize_t receive(self) except -2:
        """One read. A large frame is read to where it stays; what else is there is parsed where it was read."""
        cdef ssize_t got
        if self._frame is not None and self._size - self._filled > SCRATCH // 2:
            got = recv(
                self.fd, PyByteArray_AS_STRING(self._frame) + self._filled, self._size - self._filled, MSG_DONTWAIT
            )
            if got > 0:
                self.frame_grew(got)
                self.advance()
            return got
        got = recv(self.fd, self.plane.scratch, SCRATCH, MSG_DONTWAIT)
        if got > 0:
            self.take_bytes(self.plane.scratch, got)
        return got


cdef class Plane:
    """All sockets of one shard. code_of: error -> status. arena: where batches of known routes are copied to.

    revision: of the metadata; a route that was found under another one is forgotten.
    """

    def __cinit__(self, Arena arena, code_of, size_t in_flight_limit):
        self.arena, self.code_of, self.in_flight_limit = arena, code_of, in_flight_limit
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.scratch = <uint8_t*>malloc(SCRATCH)
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
        self.control(connection, EPOLL_CTL_ADD, EPOLLIN)

    def remove(self, PlaneConnection connection):
        """No more of it: before its descriptor is closed."""
        if connection.fd >= 0:
            self.control(connection, EPOLL_CTL_DEL, 0)
            connection.fd = -1

    cdef int control(self, PlaneConnection connection, int operation, uint32_t events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.ptr = <void*>connection
        if epoll_ctl(self.epoll, operation, connection.fd, &event) < 0 and operation != EPOLL_CTL_DEL:
            raise OSError(errno, os.strerror(errno))
        connection._watched = events
        return 0

    def drain(self):
        """Serve the sockets that are ready, at most EVENTS of them; one send for each that has something to say."""
        cdef epoll_event events[EVENTS]
        cdef int index, count
        cdef PlaneConnection connection
        count = epoll_wait(self.epoll, events, EVENTS, 0)
        self._draining = True
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
        self._draining = False
        self.flush()

    cdef int flush_later(self, PlaneConnection connection) except -1:
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
