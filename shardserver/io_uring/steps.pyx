"""Names and files made for a group in one call without the interpreter's lock (storage rules 24, 29).

Which steps, and in which order, is said in storage/. Contract: storage/disk.py, do_steps. No twin: the fault Disk of
the tests does the same by its single operations.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EEXIST, EINVAL, ENOENT, ENOTEMPTY, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free

import os

from shardserver.io_uring.open_file import honours_dsync
from shardserver.storage import disk

from shardserver.io_uring.group cimport sync_whole, write_whole
from shardserver.io_uring.open_file cimport OpenFile

cdef extern from "<fcntl.h>" nogil:
    int open(const char* path, int flags, ...)
    int O_RDWR, O_RDONLY, O_CREAT, O_EXCL, O_CLOEXEC, O_DIRECTORY

cdef extern from "<sys/file.h>" nogil:
    int flock(int descriptor, int operation)
    int LOCK_EX

cdef extern from "<sys/stat.h>" nogil:
    int mkdir(const char* path, unsigned int mode)

cdef extern from "<unistd.h>" nogil:
    int close(int descriptor)
    int fsync(int descriptor)
    int rmdir(const char* path)
    int unlink(const char* path)

cdef extern from "<stdio.h>" nogil:
    int rename(const char* path, const char* target)

cdef enum:
    UNLINK, REMOVE_DIRECTORY, MAKE_DIRECTORY, CREATE, SYNC, CLOSE, RENAME, SYNC_DIRECTORY

assert [int(one) for one in disk.Act] == [
    UNLINK, REMOVE_DIRECTORY, MAKE_DIRECTORY, CREATE, SYNC, CLOSE, RENAME, SYNC_DIRECTORY
]


cdef struct Step:
    int act
    int chain
    const char* path
    const char* target
    const uint8_t* data
    size_t size
    size_t made  # number of the step that has created what this one syncs or closes
    int descriptor  # of what this one has created and nobody has closed; else -1
    bint direct


cdef struct Chain:
    int error  # an errno; 0: it goes on
    size_t failed  # number of the step


cdef int create(Step* one, int direct) noexcept nogil:
    cdef int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC
    one.descriptor, one.direct = open(one.path, flags | direct, 0o600), True
    if one.descriptor < 0 and errno == EINVAL and direct:
        # Some filesystems create the file before they refuse O_DIRECT.
        one.descriptor, one.direct = open(one.path, flags & ~O_EXCL, 0o600), False
    if one.descriptor < 0 or flock(one.descriptor, LOCK_EX) < 0:
        return errno
    return write_whole(one.descriptor, one.data, one.size, 0)


cdef int sync_directory(const char* path) noexcept nogil:
    cdef int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0
    if descriptor < 0:
        return errno
    if fsync(descriptor) < 0:
        error = errno
    close(descriptor)
    return error


cdef int unless(int failed, int fine, int fine_too) noexcept nogil:
    return 0 if failed >= 0 or errno == fine or errno == fine_too else errno


cdef int close_made(Step* one) noexcept nogil:
    cdef int descriptor = one.descriptor
    one.descriptor = -1
    return unless(close(descriptor), 0, 0)


cdef int do_step(Step* steps, Step* one, int direct) noexcept nogil:
    """0, or an errno."""
    if one.act == UNLINK:
        return unless(unlink(one.path), ENOENT, ENOENT)
    if one.act == REMOVE_DIRECTORY:
        return unless(rmdir(one.path), ENOENT, ENOTEMPTY)
    if one.act == MAKE_DIRECTORY:
        return unless(mkdir(one.path, 0o700), EEXIST, EEXIST)
    if one.act == CREATE:
        return create(one, direct)
    if one.act == SYNC:
        return sync_whole(steps[one.made].descriptor)
    if one.act == CLOSE:
        return close_made(steps + one.made)
    if one.act == RENAME:
        return unless(rename(one.path, one.target), 0, 0)
    return sync_directory(one.path)


cdef class Steps:
    """Made ready on the loop, `run` in a thread, and then asked. Used once."""

    cdef Step* _steps
    cdef Chain* _chains
    cdef size_t _count
    cdef size_t _chain_count
    cdef list _held
    cdef dict _made
    cdef readonly bint has_failed_sync
    cdef readonly bint has_failed

    def __cinit__(self, size_t chains, steps):
        self._count, self._chain_count, self._held, self._made = len(steps), chains, [], {}
        self._steps = <Step*>calloc(max(self._count, <size_t>1), sizeof(Step))
        self._chains = <Chain*>calloc(max(chains, <size_t>1), sizeof(Chain))
        if self._steps == NULL or self._chains == NULL:
            raise MemoryError
        cdef size_t number = 0
        for step in steps:
            self.take(number, step)
            number += 1

    def __dealloc__(self):
        free(self._steps)
        free(self._chains)

    cdef int take(self, size_t number, step) except -1:
        cdef Step* one = self._steps + number
        cdef Py_buffer view
        act, chain, path, more = step
        one.act, one.chain, one.descriptor = act, chain, -1
        if not disk.ALL <= chain < <Py_ssize_t>self._chain_count or (one.act == CREATE and one.chain < 0):
            raise ValueError(f"step {number}: no chain {chain}")
        one.path = self.encode(path)
        if one.act == RENAME:
            one.target = self.encode(more)
        elif one.act == CREATE:
            PyObject_GetBuffer(more, &view, PyBUF_SIMPLE)
            one.data, one.size = <const uint8_t*>view.buf, view.len
            PyBuffer_Release(&view)  # `_held` has it
            self._held.append(more)
            self._made[path] = number
        elif one.act == SYNC:
            one.made = self._made[path]
        elif one.act == CLOSE:
            one.made = self._made.pop(path)
        return 0

    cdef const char* encode(self, path) except NULL:
        cdef bytes raw = os.fsencode(path)
        self._held.append(raw)
        return raw

    def run(self, int direct):
        """direct: the flag of open(2) for what is created."""
        with nogil:
            self.do_all(direct)

    cdef void do_all(self, int direct) noexcept nogil:
        cdef size_t number
        cdef Step* one
        cdef int error
        cdef bint ends_all
        for number in range(self._count):
            one = self._steps + number
            if one.chain >= 0 and self._chains[one.chain].error:
                continue
            error = do_step(self._steps, one, direct)
            if error:
                self.has_failed_sync = one.act == SYNC or one.act == SYNC_DIRECTORY
                ends_all = one.chain < 0 or self.has_failed_sync
                self.end_chains(-1 if ends_all else one.chain, number, error)
                if ends_all:
                    break
        for number in range(self._count):
            one = self._steps + number
            if one.descriptor >= 0 and self._chains[one.chain].error:
                close_made(one)

    cdef void end_chains(self, int chain, size_t number, int error) noexcept nogil:
        cdef size_t other
        self.has_failed = True
        for other in range(self._chain_count):
            if (chain < 0 or other == <size_t>chain) and not self._chains[other].error:
                self._chains[other].error, self._chains[other].failed = error, number

    def failures(self):
        """Of each chain: (an errno, the number of the step), or None."""
        return [
            (self._chains[number].error, self._chains[number].failed) if self._chains[number].error else None
            for number in range(self._chain_count)
        ]

    def files(self):
        """Those that are still open, by path; the caller has to close them."""
        cdef dict found = {}
        cdef size_t number
        for path, made in self._made.items():
            number = made
            if self._steps[number].descriptor >= 0:
                descriptor = self._steps[number].descriptor
                found[path] = OpenFile(path, self._steps[number].direct, descriptor, honours_dsync(descriptor))
        return found
