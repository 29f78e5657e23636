"""Writes into many files and syncs of many, in one call without the interpreter's lock (storage rules 24, 29).

A thread beside the loop that runs Python for each of them would make the loop wait for the lock hundreds of times.
No twin: threads.py has one write and its sync in plain Python.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, EIO, ENOENT, errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int descriptor, const void* data, size_t size, int64_t position)
    int fdatasync(int descriptor)
    int fsync(int descriptor)
    int close(int descriptor)

cdef extern from "<fcntl.h>" nogil:
    enum: O_RDONLY
    enum: O_DIRECTORY
    enum: O_CLOEXEC
    int open(const char* path, int flags)

cdef enum:
    BLOCK = 4096


cdef struct Write:
    const uint8_t* data
    size_t size
    int64_t position
    int descriptor
    int error
    bint goes_on  # the next write goes on in the same file: it is synced after that one


cdef int write_whole(const Write* one) noexcept nogil:
    """0, or an errno. A short write goes on at a whole block."""
    cdef size_t done = 0
    cdef ssize_t taken
    while done < one.size:
        taken = pwrite(one.descriptor, one.data + done, one.size - done, one.position + <int64_t>done)
        if taken < 0:
            if errno == EINTR or errno == EAGAIN:
                continue
            return errno
        if <size_t>taken < one.size - done:
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


cdef void write_and_sync(Write* writes, size_t count) noexcept nogil:
    """All writes first, then the syncs. A file whose write failed is not synced; the error stands at its last write."""
    cdef size_t number
    cdef int failed = 0
    for number in range(count):
        if failed == 0:
            failed = write_whole(writes + number)
        writes[number].error = failed
        if not writes[number].goes_on:
            failed = 0
    for number in range(count):
        if not writes[number].goes_on and writes[number].error == 0:
            writes[number].error = sync_whole(writes[number].descriptor)


def write_group(list group):
    """group: (descriptor, position, list of buffers) for each file, which may stand in it once.

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
            write_and_sync(writes, count)
        errors = [writes[number].error for number in range(count) if not writes[number].goes_on]
    finally:
        free(writes)
    return errors


cdef int sync_directory(const char* path) noexcept nogil:
    """0, or an errno. One that is not there has no names to lose."""
    cdef int result = 0, descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if descriptor < 0:
        return 0 if errno == ENOENT else errno
    while fsync(descriptor) < 0:
        if errno != EINTR:
            result = errno
            break
    close(descriptor)
    return result


def sync_directories(list paths):
    """paths: bytes. Gives an errno for each, 0: its names are durable, or there is no such directory."""
    cdef size_t count = len(paths), number
    cdef const char** names = <const char**>calloc(max(count, <size_t>1), sizeof(char*))
    cdef int* errors = <int*>calloc(max(count, <size_t>1), sizeof(int))
    try:
        if names == NULL or errors == NULL:
            raise MemoryError
        for number in range(count):
            names[number] = <bytes>paths[number]  # `paths` holds them
        with nogil:
            for number in range(count):
                errors[number] = sync_directory(names[number])
        return [errors[number] for number in range(count)]
    finally:
        free(names)
        free(errors)
