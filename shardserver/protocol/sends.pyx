"""Sends on their way: who takes a verified batch, and who waits for its base offset.

The layers of the data path meet here: a connection is a waiter, a partition's log or the peer that owns it is a target.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Arena, Block


cdef class Waiter:
    """Whoever waits for the outcomes of sends. ticket: the waiter's own number of one of them; each ends once."""

    cdef int confirm(self, uint64_t ticket, uint64_t base) except -1:
        """The batch is as durable as its topic says, and its first message has the offset `base`."""
        raise NotImplementedError

    cdef int refuse(self, uint64_t ticket, error) except -1:
        """The batch was not stored, or nobody knows. error: a ShardServerError."""
        raise NotImplementedError


cdef class CallbackWaiter(Waiter):
    """A waiter of one send: done(base offset, or the error)."""

    def __init__(self, done):
        self._done = done

    cdef int confirm(self, uint64_t ticket, uint64_t base) except -1:
        self._done(base)
        return 0

    cdef int refuse(self, uint64_t ticket, error) except -1:
        self._done(error)
        return 0


cdef class Target:
    """Where the batches of one partition go."""

    cdef void expect(self, size_t size) noexcept:
        """Soon take_bytes comes with so many bytes: ask for the memory where they go."""

    cdef int take(self, Block batch, uint32_t count, Waiter waiter, uint64_t ticket) except -1:
        """Take a verified batch of count messages in this process's arena; the waiter hears of it, maybe at once.

        Raises ShardServerError: it was not taken, and the waiter will not hear of it.
        """
        raise NotImplementedError

    cdef int take_bytes(
        self, Arena arena, const uint8_t* batch, size_t size, uint32_t count, Waiter waiter, uint64_t ticket
    ) except -1:
        """As take, of a batch that is the caller's again afterwards: it is copied to where it stays.

        Raises ArenaFullError: there is no room, and nothing has happened.
        """
        return self.take(arena.copy_bytes(batch, size), count, waiter, ticket)

    def send(self, Block batch, uint32_t count, done):
        """As take, for callers in Python: done(base offset, or the error)."""
        self.take(batch, count, CallbackWaiter(done), 0)

    def send_bytes(self, Arena arena not None, const uint8_t[::1] batch not None, uint32_t count, done):
        """As take_bytes, for callers in Python."""
        self.take_bytes(arena, &batch[0], len(batch), count, CallbackWaiter(done), 0)


cdef class Ticket:
    """A waiter and its ticket as a `done`, for who is told of the outcome in Python."""

    def __call__(self, outcome):
        if isinstance(outcome, int):
            self._waiter.confirm(self._number, outcome)
        else:
            self._waiter.refuse(self._number, outcome)


cdef Ticket make_ticket(Waiter waiter, uint64_t number):
    cdef Ticket made = Ticket.__new__(Ticket)
    made._waiter, made._number = waiter, number
    return made


cdef class CallbackTarget(Target):
    """A target in Python: append(batch, count, done)."""

    def __init__(self, append):
        self._append = append

    cdef int take(self, Block batch, uint32_t count, Waiter waiter, uint64_t ticket) except -1:
        self._append(batch, count, make_ticket(waiter, ticket))
        return 0
