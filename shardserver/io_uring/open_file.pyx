"""A descriptor of ours, and the count of what is in flight on it. A counter: it has no twin."""

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct statfs:
        long f_type
    int fstatfs(int descriptor, statfs* found)

cdef extern from "<linux/magic.h>" nogil:
    enum:
        EXT4_SUPER_MAGIC
        XFS_SUPER_MAGIC


def honours_dsync(int descriptor):
    """A write with RWF_DSYNC is as durable as the write and an fdatasync, on the file's file system.

    Those whose code was read say yes. File systems in user space get the flag with the write and may ignore it.
    """
    cdef statfs found
    return fstatfs(descriptor, &found) == 0 and found.f_type in (EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC)


cdef class OpenFile:
    """Owned by the loop's thread. on_idle: called once, when the last operation on it has ended.

    dsync: it honours RWF_DSYNC (honours_dsync).
    """

    def __init__(self, str path not None, bint direct, int descriptor, bint dsync=False):
        self.path, self.direct, self.descriptor, self.dsync = path, direct, descriptor, dsync

    cpdef enter(self):
        """An operation on it starts."""
        self.in_flight += 1

    cpdef leave(self):
        """An operation on it has ended, whoever still waits for its outcome."""
        assert self.in_flight > 0
        self.in_flight -= 1
        if self.in_flight == 0 and self.on_idle is not None:
            on_idle, self.on_idle = self.on_idle, None
            on_idle()
