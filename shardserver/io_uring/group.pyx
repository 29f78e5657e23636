"""Writes into many files and a sync of each, in one call without the interpreter's lock (storage rules 24, 29).

A thread beside the loop that runs Python for each of them would make the loop wait for the lock hundreds of times.
No twin: threads.py has one write and its sync in plain Python.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int descriptor, const void* data, size_t size, int64_t position)
    int fdatasync(int descriptor)

cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from *:
    """
    #define group_load(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
    #define group_store(place) __atomic_store_n(place, 1, __ATOMIC_RELEASE)
    """
    int group_load(int* place) nogil
    void group_store(int* place) nogil

cdef enum:
    BLOCK = 4096


cdef struct Write:
    const uint8_t* data
    size_t size
    int64_t position
    int descriptor
    int error
    bint goes_on  # the next write goes on in the same file: it is synced after that one


cdef int write_whole(int descriptor, const uint8_t* data, size_t size, int64_t position) noexcept nogil:
    """0, or an errno. A short write goes on at a whole block."""
    cdef size_t done = 0
    cdef ssize_t taken
    while done < size:
        taken = pwrite(descriptor, data + done, size - done, position + <int64_t>done)
        if taken < 0:
            if errno == EINTR or errno == EAGAIN:
                continue
            return errno
        if <size_t>taken < size - done:
            taken -= taken % BLOCK
            if taken == 0:
                return EIO  # the device took no whole block: trying again would never end
        done += <size_t>taken
    return 0


cdef int sync_whole(int descriptor) noexcept nogil:
    while fdatasync(descriptor) < 0:
        if errno != EINTR:
            return errno
    return 0


cdef class SyncsEnd:
    """What the threads of a group share: a sync has failed, and none of the others are made any more."""

    cdef int _has_come


cdef int sync_or_end(int descriptor, int* has_ended) noexcept nogil:
    cdef int error = ECANCELED
    if not group_load(has_ended):
        error = sync_whole(descriptor)
        if error:
            group_store(has_ended)
    return error


cdef void write_and_sync(Write* writes, size_t count, int* has_ended) noexcept nogil:
    """All writes first, then the syncs, until one fails. A file whose write failed is not synced; the error stands at its
    last write.
    """
    cdef size_t number
    cdef const Write* one
    cdef int failed = 0
    for number in range(count):
        if failed == 0:
            one = writes + number
            failed = write_whole(one.descriptor, one.data, one.size, one.position)
        writes[number].error = failed
        if not writes[number].goes_on:
            failed = 0
    for number in range(count):
        if not writes[number].goes_on and writes[number].error == 0:
            writes[number].error = sync_or_end(writes[number].descriptor, has_ended)


def write_group(list group, SyncsEnd end not None):
    """group: (descriptor, position, list of buffers) for each file, which may stand in it once. end: the same for all
    parts of a group.

    Gives an errno for each, 0: all is written and synced. The buffers are the caller's, and must not change meanwhile.
    """
    cdef size_t count = sum([len(buffers) for _, _, buffers in group]), number = 0, size
    cdef Write* writes = <Write*>calloc(max(count, <size_t>1), sizeof(Write))
    cdef Py_buffer view
    cdef int64_t at
    cdef list errors = []
    if writes == NULL:
        raise MemoryError
    try:
        for descriptor, position, buffers in group:
            at = position
            for buffer in buffers:
                PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
                size = view.len
                writes[number].data, writes[number].size, writes[number].position = <const uint8_t*>view.buf, size, at
                PyBuffer_Release(&view)  # `group` holds the buffers
                writes[number].descriptor, writes[number].goes_on = descriptor, True
                at += size
                number += 1
            writes[number - 1].goes_on = False
        with nogil:
            write_and_sync(writes, count, &end._has_come)
        errors = [writes[number].error for number in range(count) if not writes[number].goes_on]
    finally:
        free(writes)
    return errors
