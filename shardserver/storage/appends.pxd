# cython: language_level=3
"""Appends of one partition that wait for something, first in, first out: most have one at a time, which lies in the log."""

from cpython.ref cimport Py_DECREF, PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc


cdef struct Append:  # references to `held` and `waiter` are owned; held is NULL once the batch is in the tail
    uint64_t base
    uint64_t end
    uint64_t ticket
    uint8_t* data
    size_t size
    PyObject* held
    PyObject* waiter
    uint32_t count


cdef struct Appends:  # first in, first out: `one` when it is there, then slots[head..tail), a ring of `room`
    Append one
    Append* slots
    uint64_t room
    uint64_t head
    uint64_t tail
    bint has_one


cdef inline uint64_t length_of(const Appends* appends) noexcept nogil:
    return appends.has_one + appends.tail - appends.head


cdef inline Append* first_of(Appends* appends) noexcept nogil:
    return &appends.one if appends.has_one else appends.slots + (appends.head & (appends.room - 1))


cdef inline Append* last_of(Appends* appends) noexcept nogil:
    return &appends.one if appends.head == appends.tail else appends.slots + ((appends.tail - 1) & (appends.room - 1))


cdef inline void drop_first(Appends* appends) noexcept nogil:
    if appends.has_one:
        appends.has_one = False
    else:
        appends.head += 1


cdef inline void drop_last(Appends* appends) noexcept nogil:
    if appends.head == appends.tail:
        appends.has_one = False
    else:
        appends.tail -= 1


cdef inline int grow(Appends* appends) except -1:
    cdef uint64_t room = max(2 * appends.room, <uint64_t>4), number = appends.head
    cdef Append* grown = <Append*>malloc(room * sizeof(Append))
    if grown == NULL:
        raise MemoryError
    while number != appends.tail:
        grown[number & (room - 1)] = appends.slots[number & (appends.room - 1)]
        number += 1
    free(appends.slots)
    appends.slots, appends.room = grown, room
    return 0


cdef inline Append* push(Appends* appends) except NULL:
    """A new last one, good until the next; the caller fills it."""
    if length_of(appends) == 0:
        appends.has_one = True
        return &appends.one
    if appends.tail - appends.head == appends.room:
        grow(appends)
    appends.tail += 1
    return last_of(appends)


cdef inline void release(Appends* appends) noexcept:
    """Their references and memory."""
    while length_of(appends):
        one = first_of(appends)
        drop_first(appends)
        if one.held != NULL:
            Py_DECREF(<object>one.held)
        Py_DECREF(<object>one.waiter)
    free(appends.slots)
