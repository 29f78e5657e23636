"""The lane of sends for cimport. Docstrings in send_lane.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Arena, Block
from shardserver.protocol.sends cimport Target, Waiter
from shardserver.router.ring cimport Consumer, Producer, SlotBytes


cdef struct Sent:  # a send that the peer's process has been given and has not answered; number 0: none
    uint64_t number
    uint64_t ticket
    double deadline
    uint32_t count
    PyObject* batch  # owned, as the two below
    PyObject* waiter
    PyObject* partition


cdef class Floor:
    cdef public uint64_t offset


cdef class RemotePartition(Target):
    cdef SendLane _lane
    cdef readonly uint64_t uid
    cdef readonly Floor floor
    cdef readonly list unanswered
    cdef object _send_otherwise


cdef class SendAnswers(Waiter):
    cdef SendLane _lane


cdef class Tally:
    cdef uint64_t _requests
    cdef uint64_t _bytes

    cdef int add(self, uint64_t size) except -1


cdef class SendLane:
    cdef Arena _arena
    cdef object _peer
    cdef object _asked
    cdef object _waiting_requests
    cdef object _waiting_answers
    cdef public object find_target
    cdef public bint is_serving
    cdef public bint is_publish_due
    cdef public uint64_t last_number
    cdef public uint64_t slots_sent
    cdef readonly uint64_t slots_taken
    cdef readonly uint64_t out
    cdef Producer _producer
    cdef Consumer _consumer
    cdef object _shown
    cdef const uint8_t* _shown_start
    cdef uint64_t _shown_bytes
    cdef SendAnswers _answers
    cdef bint _is_stamped
    cdef double _deadline
    cdef Sent* _sent
    cdef uint64_t _room
    cdef dict _floors
    cdef dict _tallies

    cdef Sent* at(self, uint64_t number) noexcept nogil
    cdef SlotBytes* claim(self, bint is_request) except? NULL
    cdef int pushed(self) except -1
    cdef bint try_send(
        self, Block batch, uint32_t count, RemotePartition partition, Waiter waiter, uint64_t ticket
    ) except -1
    cdef bint take(self, const SlotBytes* slot) except -1
    cdef bint end_send(self, const SlotBytes* slot) except -1
    cdef int forget(self, Sent* sent) except -1
    cdef bint serve_send(self, const SlotBytes* slot) except -1
    cdef int count_load(self, uid, uint64_t size) except -1
    cdef bint try_answer(self, uint64_t number, uint64_t base) except -1
