"""Removal of a file in one call without the interpreter's lock (storage rule 29): its name first, then its space, a
little at a time.

Where the file system tells the device of freed blocks (mount option `discard`), one unlink tells it of all of a segment,
and journal writes wait behind that: 5 ms, 0.6 behind a step (docs/performance.md, "Deletion").
No twin: the fault Disk of the tests forgets the bytes of an open file with its name.
"""

from libc.errno cimport ENOENT, errno
from libc.stdint cimport int64_t

import os

cdef extern from "<fcntl.h>" nogil:
    int open(const char* path, int flags, ...)
    int O_RDWR, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat_t "stat":
        unsigned long st_nlink
        int64_t st_size
    int fstat(int descriptor, stat_t* found)

cdef extern from "<unistd.h>" nogil:
    int close(int descriptor)
    int ftruncate(int descriptor, int64_t length)
    int unlink(const char* path)

cdef int64_t STEP = 1 << 20


cdef void shorten(int descriptor) noexcept nogil:
    """Down to a step at most, which goes with the last descriptor; so does all of it when this fails."""
    cdef stat_t found
    # A file that still has a name is not ours to empty: a hard link, or how NFS and FUSE keep what is open.
    if fstat(descriptor, &found) < 0 or found.st_nlink > 0:
        return
    cdef int64_t length = found.st_size
    while length > STEP:
        length = (length - 1) // STEP * STEP
        if ftruncate(descriptor, length) < 0:
            return


cdef int remove(const char* path) noexcept nogil:
    """0, or an errno."""
    cdef int descriptor = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), error = 0
    if unlink(path) < 0 and errno != ENOENT:
        error = errno
    if descriptor >= 0:
        shorten(descriptor)
        close(descriptor)
    return error


def remove_file(str path not None):
    """A missing one is fine. Raises OSError; then the file is as it was."""
    cdef bytes raw = os.fsencode(path)
    cdef const char* name = raw
    cdef int error
    with nogil:
        error = remove(name)
    if error:
        raise OSError(error, os.strerror(error))
