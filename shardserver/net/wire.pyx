"""One connection without its socket: bytes in, requests started in order, replies out in order of arrival.

machine.py is its specification, and both pass one suite. A send whose route is known (routes.py) is verified, copied
into the arena and appended without Python on its way; all else is handed over as a Frame. A large batch by a route that
this connection has used arrives where it stays.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from shardserver.errors import ArenaFullError, ShardServerError
from shardserver.protocol.frame import Frame, RequestHeader

from shardserver.memory.arena cimport Block
from shardserver.memory.prefetch cimport prefetch_bytes
from shardserver.net.frame_reader cimport FrameReader, WireContext, checksum_is_good, split_checksum_is_good
from shardserver.net.known_routes cimport KEY_ROOM, KnownRoutes, Route
from shardserver.net.output cimport Output
from shardserver.net.poll_route cimport POLL_TAIL, PollRoute
from shardserver.net.reply_header cimport REPLY_STATUS, keep_echo, write_reply_header
from shardserver.protocol.batch cimport verify
from shardserver.protocol.little_endian cimport read_u32, write_u32, write_u64

cdef enum:
    HEADER = 256
    OP_READ = 2
    OP_SEND = 160
    POLL_MESSAGES = 100  # the code of an OP_READ
    CROSSINGS_TOLD = 64
    LARGE_BATCH = 64 * 1024  # below, a copy costs less than the bookkeeping
    # Of a request header (framing 2).
    OPERATION = 176
    CODE = 196

cdef enum SlotState:
    WAITING
    STARTED
    DONE


cdef inline Request request_of(const uint8_t* raw) noexcept nogil:
    if raw[OPERATION] == OP_SEND:
        return SEND
    return POLL if raw[OPERATION] == OP_READ and read_u32(raw + CODE) == POLL_MESSAGES else OTHER


cdef inline void count_send(Route route, uint64_t size) noexcept:
    route._requests += 1
    route._bytes += size


cdef class FrameReply:
    """The reply callable of one request that Python serves. Called once."""

    def __call__(self, buffers, closes):
        self._connection.answer_buffers(self._number, buffers, closes)


cdef class Wire(FrameReader):
    """Consecutive sends overlap; any other request starts when all earlier ones have completed.

    owner: asked `start(frame, reply)`, `find_route(key)` -> Route | None, `find_poll_route(key)` -> PollRoute | None; told
    `note_local()`, once in a row of requests by routes of this shard, `note_crossings(shard, count)` after so many
    (`crossings_told`) or fewer by routes of another, before it is asked or told anything else of requests, and
    `on_change()` when it may have to act: the connection has ended, or `wants_owner` and something left.
    """

    def __cinit__(self, WireContext context, owner, size_t max_frame_bytes, size_t in_flight_limit):
        self.context, self.owner = context, owner
        self._max_frame_bytes, self._in_flight_limit = max_frame_bytes, in_flight_limit
        self.close_reason = ""
        self.crossings_told = CROSSINGS_TOLD
        self._output, self.routes = Output(), KnownRoutes()

    def __dealloc__(self):
        while self._head != self._tail:
            self.free_slot(self.slot(self._head))
            self._head += 1
        free(self._slots)

    # What others see of it

    @property
    def is_idle(self):
        return self._head == self._tail and self._output.total == 0

    @property
    def wants_more(self):
        """False: read no more from this socket until replies have left."""
        return self.has_room()

    cdef bint has_room(self) noexcept:
        return self.in_flight_bytes < self._in_flight_limit and not self.close_reason

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
        self.context.take_now()
        self.close_reason = self.close_reason or reason
        self.drop_slots()
        self._output.clear()
        self.end_frame()
        self.forget_routes()
        self.owner = None  # no cycle may keep what was held

    def forget_routes(self):
        self.routes.forget()

    # Frames to slots

    cdef size_t find_batch(self, const uint8_t* raw, size_t length, size_t size) except? 0:
        """Where in a frame of `size` bytes a large batch begins, when `length` reach so far and we know its route.

        0: unknown, small or no send. Who is not logged in has no routes, so can take no memory by a header alone.
        """
        cdef uint32_t metadata
        if raw[OPERATION] != OP_SEND or length < HEADER + 4 or size < LARGE_BATCH + HEADER + 8:
            return 0
        metadata = read_u32(raw + HEADER)
        if metadata < 4 or metadata > KEY_ROOM or HEADER + 4 + metadata > length:
            return 0
        if size - HEADER - 4 - metadata < LARGE_BATCH or not self.knows_send(raw + HEADER + 4, metadata - 4):
            return 0
        return HEADER + 4 + metadata

    cdef int take_arrived(self) except -1:
        """All of a batch is in its block."""
        cdef Block block = self._block
        cdef size_t start = self._start, size = start + self._size
        cdef uint64_t number = self._tail
        self.end_frame()
        if self._next == self._tail and self._others == 0 and self.knows_send(self._header + HEADER + 4, start - HEADER - 8):
            if split_checksum_is_good(self._header, start, block.data, block.size):
                self.add_slot(self._header, size).state = STARTED
                self._next += 1
                return self.send_block(number, self.routes.last_send, self._header, block, read_u32(self._header + start - 4))
        joined = (<const char*>self._header)[:start] + (<const char*>block.data)[: block.size]
        return self.take_frame(<const uint8_t*>PyBytes_AS_STRING(joined), size)

    cdef int close_after_replies(self, reason) except -1:
        self.close_reason = self.close_reason or reason
        self.due()
        return 0

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

    cdef Slot* add_slot(self, const uint8_t* raw, size_t size) except NULL:
        cdef Slot* slot
        if self._tail - self._head == self._slot_room:
            self.grow_slots()
        slot = self.slot(self._tail)
        memset(slot, 0, sizeof(Slot))
        slot.bytes, slot.request = size, request_of(raw)
        self._tail += 1
        self.frames += 1
        self.in_flight_bytes += size
        self.context.in_flight_bytes += size
        return slot

    cdef int take_frame(self, const uint8_t* raw, size_t size) except -1:
        cdef Slot* slot = self.add_slot(raw, size)
        if slot.request == SEND and self._next == self._tail - 1 and self._others == 0:
            self._next += 1
            slot.state = STARTED
            self.start_send(self._tail - 1, raw, size)
        elif slot.request == POLL and self._head == self._tail - 1:
            self._next += 1
            slot.state = STARTED
            self._others += 1
            self.start_poll(self._tail - 1, raw, size)
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
        if slot.request != SEND and number != self._head:
            return False
        self._next += 1
        slot.state = STARTED
        self._others += slot.request != SEND
        raw = <bytes>slot.held
        slot.held = NULL
        try:
            if slot.request == SEND:
                self.start_send(number, <const uint8_t*>PyBytes_AS_STRING(raw), len(raw))
            elif slot.request == POLL:
                self.start_poll(number, <const uint8_t*>PyBytes_AS_STRING(raw), len(raw))
            else:
                self.start_frame(number, raw)
        finally:
            Py_DECREF(raw)
        return True

    cdef int start_frame(self, uint64_t number, raw) except -1:
        self.context.take_now()  # sends of this connection before it
        return self.start_in_turn(number, raw)

    cdef int start_in_turn(self, uint64_t number, raw) except -1:
        cdef FrameReply reply = FrameReply.__new__(FrameReply)
        view = memoryview(raw)
        reply._connection, reply._number = self, number
        self.tell_crossings()
        self._is_local = False
        self.owner.start(Frame(RequestHeader.decode(view), view[HEADER:]), reply)
        return 0

    # Sends

    cdef int start_send(self, uint64_t number, const uint8_t* raw, size_t size) except -1:
        """By a known route without Python; else as any other frame.

        Verified before its route is looked for, whose place in memory is asked for meanwhile.
        """
        cdef uint32_t length = 0, count
        cdef size_t body = size - HEADER
        cdef const uint8_t* batch
        cdef Route route = None
        cdef int code = 0
        if body >= 8:
            length = read_u32(raw + HEADER)
        if 4 <= length <= body - 4:
            self.routes.expect_send(raw + HEADER + 4, length - 4)
            if checksum_is_good(raw, body):
                batch, count = raw + HEADER + 4 + length, read_u32(raw + HEADER + length)
                code = verify(batch, body - 4 - length, count)  # giving the interpreter's lock away takes as long
                route = self.find_send(raw + HEADER + 4, length - 4)
        if route is None:
            self.start_frame(number, PyBytes_FromStringAndSize(<const char*>raw, size))
            return 0
        keep_echo(self.slot(number).echo, raw)
        if code:
            self.answer_status(number, code)
            return 0
        size -= batch - raw
        if self.context.take_later(self, number, route, batch, size, count):
            return 0
        return self.hand_over(number, route, batch, size, count)

    cdef inline bint knows_send(self, const uint8_t* key, size_t length) except -1:
        self.routes.begin_revision(self.context.revision)
        return self.routes.knows_send(key, length)

    cdef inline Route find_send(self, const uint8_t* key, size_t length):
        self.routes.begin_revision(self.context.revision)
        return self.routes.find_send(key, length, self.owner)

    cdef inline PollRoute find_poll(self, const uint8_t* key, size_t length):
        self.routes.begin_revision(self.context.revision)
        return self.routes.find_poll(key, length, self.owner)

    cdef int send_block(self, uint64_t number, Route route, const uint8_t* raw, Block block, uint32_t count) except -1:
        """A batch that lies where it stays. raw: the frame up to it."""
        cdef int code
        keep_echo(self.slot(number).echo, raw)
        with nogil:
            code = verify(block.data, block.size, count)
        if code:
            self.answer_status(number, code)
            return 0
        self.context.take_now()  # what came before it, also of other connections
        self.use_route(number, route)
        try:
            route.target.take(block, count, self, number)
        except ShardServerError as error:
            self.refuse(number, error)
        count_send(route, block.size)
        return 0

    cdef int hand_over(self, uint64_t number, Route route, const uint8_t* batch, size_t size, uint32_t count) except -1:
        """All that came before it has been handed over; behind it in memory its frame ends."""
        cdef size_t frame = self.slot(number).bytes
        self.use_route(number, route)
        try:
            route.target.take_bytes(self.context.arena, batch, size, count, self, number)
        except ArenaFullError:  # Python makes room, or refuses
            return self.start_in_turn(number, PyBytes_FromStringAndSize(<const char*>batch + size - frame, frame))
        except ShardServerError as error:
            self.refuse(number, error)
        count_send(route, size)
        return 0

    cdef int use_route(self, uint64_t number, Route route) except -1:
        memcpy(self.slot(number).place, route._place, 12)
        return self.note_direction(route)

    cdef int note_direction(self, Route route) except -1:
        """Where the connection sends to: its owner is told now and then, as telling costs more than the send."""
        if route.crosses_to < 0:
            return self.note_local()
        if route.crosses_to != self._crosses_to:
            self.tell_crossings()
            self._crosses_to = route.crosses_to
        self._is_local = False
        self._crossings += 1
        if self._crossings >= self.crossings_told:
            self.tell_crossings()
        return 0

    cdef int tell_crossings(self) except -1:
        cdef uint64_t count = self._crossings
        if count:
            self._crossings = 0
            self.owner.note_crossings(self._crosses_to, count)
        return 0

    cdef int note_local(self) except -1:
        if not self._is_local:
            self.tell_crossings()
            self._is_local = True
            self.owner.note_local()
        return 0

    # Polls

    cdef int start_poll(self, uint64_t number, const uint8_t* raw, size_t size) except -1:
        """By a known route without Python when the tail has what is asked for; else as any other frame.

        All before it has been answered, so its reply goes where it belongs at once.
        """
        cdef uint8_t header[HEADER]
        cdef Slot* slot = self.slot(number)
        cdef size_t body = size - HEADER
        cdef PollRoute route = None
        if body > POLL_TAIL and checksum_is_good(raw, body):
            route = self.find_poll(raw + HEADER, body - POLL_TAIL)
        if route is not None:
            keep_echo(slot.echo, raw)
            write_reply_header(header, slot.echo, HEADER)
            if route.try_answer(raw + size - POLL_TAIL, self._output, header, HEADER):
                self.note_local()
                slot.kind = WRITTEN
                return self.done(slot)
        self.start_frame(number, PyBytes_FromStringAndSize(<const char*>raw, size))
        return 0

    # Replies

    cdef Slot* started(self, uint64_t number) noexcept:
        """The slot of a request that waits for its reply; NULL: the connection is closed, or it has been answered."""
        cdef Slot* slot
        if self.is_closed or number < self._head or number >= self._next:
            return NULL
        slot = self.slot(number)
        return slot if slot.state == STARTED else NULL

    cdef int confirm(self, uint64_t number, uint64_t base) except -1:
        cdef Slot* slot = self.started(number)
        if slot == NULL:
            return 0
        slot.base = base
        slot.kind = CONFIRMED
        return self.done(slot)

    cdef int answer_status(self, uint64_t number, uint32_t status) except -1:
        cdef Slot* slot = self.started(number)
        if slot == NULL:
            return 0
        slot.base, slot.kind = status, STATUS
        return self.done(slot)

    cdef int refuse(self, uint64_t number, error) except -1:
        return self.answer_status(number, self.context.code_of(error))

    def answer_buffers(self, uint64_t number, buffers, closes):
        cdef Slot* slot = self.started(number)
        if slot == NULL:
            return
        Py_INCREF(buffers)
        slot.held, slot.kind, slot.closes = <PyObject*>buffers, BUFFERS, closes
        self.done(slot)

    cdef int done(self, Slot* slot) except -1:
        slot.state = DONE
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
        self.context.in_flight_bytes -= slot.bytes
        self._others -= slot.request != SEND
        self.free_slot(slot)
        self._head += 1
        self.due()
        if closes:
            self.close_reason = self.close_reason or "a request failed inside the server"
            self.drop_slots()
        return True

    cdef int drop_slots(self) except -1:
        self.is_closed = True
        self.context.in_flight_bytes -= self.in_flight_bytes
        self.in_flight_bytes = 0
        while self._head != self._tail:
            self.free_slot(self.slot(self._head))
            self._head += 1
        self._next, self._others = self._tail, 0
        return 0

    cdef int write_reply(self, Slot* slot) except -1:
        cdef uint8_t* at
        cdef size_t size
        if slot.kind == WRITTEN:
            return 0
        if slot.kind == BUFFERS:
            for one in <object>slot.held:
                self._output.add(one)
            return 0
        size = HEADER + 24 if slot.kind == CONFIRMED else HEADER
        at = self._output.claim(size)
        write_reply_header(at, slot.echo, size)
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
            self.context.flush_later(self)
        return 0
