"""A descriptor of ours, and the count of what is in flight on it. A counter: it has no twin."""


cdef class OpenFile:
    """Owned by the loop's thread. on_idle: called once, when the last operation on it has ended."""

    def __init__(self, str path not None, bint direct, int descriptor):
        self.path, self.direct, self.descriptor = path, direct, descriptor

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
