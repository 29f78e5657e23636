"""The sends between this process and one peer, without Python on the way: those that go there, and those that come.

send_lane_python.py is its specification, and both pass one suite. Slots: docs/formats/ring-messages.md, "SEND". The
lane does the usual case alone. Whatever is not usual goes to the peer (peer.py), which does everything: a full ring, a
send that is late, a peer that has died, a repeat, an arena without room. A send is the lane's from the push of its slot
until its answer, or until the peer takes it over.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import logging

from shardserver.errors import ArenaFullError, CorruptionError, ShardServerError, StorageError
from shardserver.router.answers import decode_error
from shardserver.router.send_lane_python import SentRecord

from shardserver.memory.arena cimport Arena, Block
from shardserver.protocol.little_endian cimport read_u32, read_u64
from shardserver.protocol.sends cimport Target, Waiter, make_ticket
from shardserver.router.ring cimport Consumer, Producer, SlotBytes

log = logging.getLogger(__name__)

cdef enum:
    DRAIN_SLOTS = 256
    INLINE = 40
    KIND_REQUEST = 2
    KIND_ANSWER = 4
    KIND_ERROR = 5
    OPERATION_SEND = 1
    BASE_BYTES = 8


cdef tuple slot_tuple(const SlotBytes* slot):
    inline = (<const char*>slot.inline_bytes)[:INLINE]
    return (slot.kind, slot.flags, slot.length, slot.request, slot.position, inline)


cdef class Floor:
    """offset: one above the highest of a partition that we have seen answered."""

    def __init__(self, offset=0):
        self.offset = offset


cdef class RemotePartition(Target):
    """A partition of the peer, as the target of one connection's sends.

    unanswered: sends of the connection that were answered 57; while there are some, each new one is compared with them.
    send_otherwise(partition, batch, count, done): what the lane does not do. Raises ShardServerError.
    """

    def __init__(self, SendLane lane, uint64_t uid, Floor floor, list unanswered, send_otherwise):
        self._lane, self.uid, self.floor, self.unanswered = lane, uid, floor, unanswered
        self._send_otherwise = send_otherwise

    cdef int take(self, Block batch, uint32_t count, Waiter waiter, uint64_t ticket) except -1:
        if self.unanswered or not self._lane.try_send(batch, count, self, waiter, ticket):
            self._send_otherwise(self, batch, count, make_ticket(waiter, ticket))
        return 0


cdef class SendAnswers(Waiter):
    """Answers the sends of one process of the peer. ticket: the number of its request."""

    cdef int confirm(self, uint64_t ticket, uint64_t base) except -1:
        if self._lane is not None and not self._lane.try_answer(ticket, base):
            self._lane._peer.answer_send(ticket, base)
        return 0

    cdef int refuse(self, uint64_t ticket, error) except -1:
        if self._lane is not None:
            self._lane._peer.answer_send(ticket, error)
        return 0


cdef class Tally:
    """What a partition of ours was sent by the peer."""

    cdef int add(self, uint64_t size) except -1:
        self._requests += 1
        self._bytes += size
        return 0


cdef class SendLane:
    """Owned by its peer. asked, waiting_requests, waiting_answers: the peer's, looked at for their lengths.

    find_target(uid) -> Target | None: where sends of the peer go; None: the peer's `serve` has to look.
    """

    def __init__(self, Arena arena, peer, set asked, waiting_requests, waiting_answers):
        self._arena, self._peer, self._asked = arena, peer, asked
        self._waiting_requests, self._waiting_answers = waiting_requests, waiting_answers
        self._floors, self._tallies = {}, {}

    def __dealloc__(self):
        free(self._sent)  # empty: a send that is out holds its partition, and that the lane

    # The peer's processes

    def attach(self, Producer producer, Consumer consumer, shown):
        """A new process. shown: its arena, mapped read-only. The sends of the former one were taken over."""
        cdef Py_buffer view
        assert self.out == 0
        free(self._sent)
        self._sent = NULL
        self._room = 0
        self._sent = <Sent*>calloc(consumer.slots, sizeof(Sent))
        if self._sent == NULL:
            raise MemoryError
        self._room = consumer.slots
        self._shown = memoryview(shown)
        PyObject_GetBuffer(self._shown, &view, PyBUF_SIMPLE)
        self._shown_start, self._shown_bytes = <const uint8_t*>view.buf, view.len
        PyBuffer_Release(&view)
        self._producer, self._consumer = producer, consumer
        self._answers = SendAnswers.__new__(SendAnswers)
        self._answers._lane = self
        self.is_publish_due = self._is_stamped = False

    def detach(self):
        """It has ended. Sends that it has not answered are still here, to be taken over."""
        self.is_serving = False
        self._producer, self._consumer, self._shown = None, None, None
        self._shown_bytes = 0
        if self._answers is not None:
            self._answers._lane = None
        self._answers = None

    # Sends that go there

    def floor(self, uid):
        """Of a partition of the peer."""
        return self._floors.setdefault(uid, Floor())

    def partition(self, uid, list unanswered, send_otherwise):
        """A target for the sends of one connection; arguments as of RemotePartition."""
        return RemotePartition(self, uid, self.floor(uid), unanswered, send_otherwise)

    cdef inline Sent* at(self, uint64_t number) noexcept nogil:
        return self._sent + (number & (self._room - 1))

    cdef SlotBytes* claim(self, bint is_request) except? NULL:
        try:
            return self._producer.try_claim(is_request)
        except CorruptionError:  # the peer does it otherwise, and meets it again when it publishes
            return NULL

    cdef int pushed(self) except -1:
        self.slots_sent += 1
        if not self.is_publish_due:
            self.is_publish_due = True
            self._peer.wake()
        return 0

    cdef bint try_send(
        self, Block batch, uint32_t count, RemotePartition partition, Waiter waiter, uint64_t ticket
    ) except -1:
        """False: something is in the way, and nothing was done. Bounds as peer.py: what waits goes first, and no more
        requests are out than half of the ring for their answers has slots.
        """
        cdef SlotBytes* slot
        cdef Sent* sent
        cdef uint64_t number = self.last_number + 1
        if self._producer is None or not self.is_serving or batch._arena is not self._arena:
            return False
        if self.out + <uint64_t>len(self._asked) >= self._consumer.slots // 2 or self._waiting_requests:
            return False
        sent = self.at(number)
        if sent.number:  # the table goes round, and an old one still waits there
            return False
        if not self._is_stamped:
            self._deadline = self._peer.begin_sends()
            self._is_stamped = True
        slot = self.claim(True)
        if slot == NULL:
            return False
        self.last_number = number
        slot.kind, slot.flags, slot.length = KIND_REQUEST, OPERATION_SEND, batch.size
        slot.request, slot.position = number, batch.position
        memset(slot.inline_bytes, 0, INLINE)
        memcpy(slot.inline_bytes, &partition.uid, 8)
        memcpy(slot.inline_bytes + 8, &count, 4)
        sent.number, sent.ticket, sent.deadline, sent.count = number, ticket, self._deadline, count
        Py_INCREF(batch)
        Py_INCREF(waiter)
        Py_INCREF(partition)
        sent.batch, sent.waiter, sent.partition = <PyObject*>batch, <PyObject*>waiter, <PyObject*>partition
        self.out += 1
        self.pushed()
        return True

    cdef int forget(self, Sent* sent) except -1:
        cdef Sent former = sent[0]
        memset(sent, 0, sizeof(Sent))  # first: what is dropped may come back into here
        self.out -= 1
        Py_DECREF(<object>former.batch)
        Py_DECREF(<object>former.waiter)
        Py_DECREF(<object>former.partition)
        return 0

    def take_sends(self, double until):
        """Those whose deadline is `until` or before, in order: they are the peer's from now on."""
        cdef uint64_t index
        cdef Sent* sent
        taken = []
        for index in range(self._room):
            sent = self._sent + index
            if sent.number and sent.deadline <= until:
                done = make_ticket(<Waiter>sent.waiter, sent.ticket)
                partition, batch = <object>sent.partition, <object>sent.batch
                taken.append(SentRecord(sent.number, sent.deadline, partition, sent.count, batch, done))
                self.forget(sent)
        return sorted(taken)

    def first_deadline(self):
        """Of the sends that are here; None: there are none."""
        cdef uint64_t index
        cdef double first = INFINITY
        for index in range(self._room):
            if self._sent[index].number:
                first = min(first, self._sent[index].deadline)
        return None if first == INFINITY else first

    # What comes

    def has_slots(self):
        """Something came. True also when the ring is corrupt: taking meets it."""
        if self._consumer is None:
            return False
        try:
            return self._consumer.waiting() > 0
        except CorruptionError:
            return True

    def try_park(self):
        """False: something came meanwhile, or the ring is corrupt."""
        if self._consumer is None:
            return True
        try:
            return self._consumer.try_park()
        except CorruptionError:
            return False

    def unpark(self):
        if self._consumer is not None:
            self._consumer.unpark()

    def drain(self, limit):
        """Take up to `limit` slots, at most 256, and act on them; gives their number."""
        cdef SlotBytes slots[DRAIN_SLOTS]
        cdef int64_t index, count
        if self._consumer is None:
            return 0
        count = self._consumer.copy_slots(slots, min(<int64_t>limit, <int64_t>DRAIN_SLOTS))
        self.slots_taken += count
        for index in range(count):
            if not self.take(&slots[index]):
                self._peer.take(slot_tuple(&slots[index]))
        return count

    cdef bint take(self, const SlotBytes* slot) except -1:
        """False: it is the peer's to take."""
        if slot.kind == KIND_ANSWER or slot.kind == KIND_ERROR:
            return self.end_send(slot)
        return slot.kind == KIND_REQUEST and slot.flags == OPERATION_SEND and self.serve_send(slot)

    cdef bint end_send(self, const SlotBytes* slot) except -1:
        cdef Sent* sent = self.at(slot.request)
        cdef uint64_t ticket, base = 0
        if slot.request == 0 or self._room == 0 or sent.number != slot.request:
            return False
        error = None
        if slot.kind == KIND_ERROR:
            error = decode_error((<const char*>slot.inline_bytes)[: min(slot.length, <uint32_t>INLINE)])
        elif slot.flags != 0 or slot.length != BASE_BYTES:
            raise CorruptionError("ring", slot.request, f"a base offset in the answer of a send, found {slot.length} bytes")
        cdef Waiter waiter = <Waiter>sent.waiter
        cdef RemotePartition partition = <RemotePartition>sent.partition
        ticket = sent.ticket
        if error is None:
            base = read_u64(slot.inline_bytes)
            partition.floor.offset = max(partition.floor.offset, base + sent.count)
        self.forget(sent)
        try:
            if error is None:
                waiter.confirm(ticket, base)
            else:
                waiter.refuse(ticket, error)
        except Exception:  # a bug of whoever waits: the slots behind this one were taken, and belong to others
            log.exception("answer_failed", extra={"fields": {"peer": self._peer.number, "operation": OPERATION_SEND}})
        return True

    # Sends that come from there

    cdef bint serve_send(self, const SlotBytes* slot) except -1:
        """The shard of the connection has verified the batch, and nobody writes in its arena but itself."""
        cdef Target target
        cdef const uint8_t* batch
        cdef uint32_t count
        cdef SendAnswers answers = self._answers
        if slot.length == 0 or slot.length > self._shown_bytes or slot.position > self._shown_bytes - slot.length:
            return False
        if self.find_target is None:
            return False
        uid = read_u64(slot.inline_bytes)
        target = self.find_target(uid)
        if target is None:
            return False
        count, batch = read_u32(slot.inline_bytes + 8), self._shown_start + slot.position
        try:
            target.take_bytes(self._arena, batch, slot.length, count, answers, slot.request)
        except ArenaFullError:  # the peer's `serve` makes room, or refuses
            return False
        except ShardServerError as refusal:
            answers.refuse(slot.request, refusal)
        except Exception as error:  # a bug: who asked is told of it, and others are served
            log.exception("send_failed", extra={"fields": {"partition": uid}})
            answers.refuse(slot.request, StorageError(f"a send failed inside the server: {error!r}"))
        self.count_load(uid, slot.length)
        return True

    cdef int count_load(self, uid, uint64_t size) except -1:
        cdef Tally tally = self._tallies.get(uid)
        if tally is None:
            tally = self._tallies[uid] = Tally.__new__(Tally)
        return tally.add(size)

    def take_loads(self):
        """[(uid, requests, bytes)] that the peer has sent since the last call."""
        cdef Tally tally
        tallies, self._tallies = self._tallies, {}
        return [(uid, (<Tally>tally)._requests, (<Tally>tally)._bytes) for uid, tally in tallies.items()]

    cdef bint try_answer(self, uint64_t number, uint64_t base) except -1:
        cdef SlotBytes* slot
        if self._waiting_answers:
            return False
        slot = self.claim(False)
        if slot == NULL:
            return False
        slot.kind, slot.flags, slot.length = KIND_ANSWER, 0, BASE_BYTES
        slot.request, slot.position = number, 0
        memset(slot.inline_bytes, 0, INLINE)
        memcpy(slot.inline_bytes, &base, BASE_BYTES)
        self.pushed()
        return True

    def publish(self):
        """Show what was pushed. True: the peer sleeps, and its doorbell has to be rung."""
        self._is_stamped = False
        if not self.is_publish_due:
            return False
        self.is_publish_due = False
        return self._producer.publish()
