"""What a partition's log does for each batch: take it, give it its offset, stage it for the journal, answer.

Offsets and timestamps are given when the write that carries a batch is built, so that a failed run leaves no gap;
`memory` topics are answered at once and so are stamped at once, and are never rolled back.
Specification: append_log_python.py.
"""

from cpython.buffer cimport PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shardserver.errors import ArenaFullError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.settings import Durability

from shardserver.memory.arena cimport Arena, Block
from shardserver.memory.prefetch cimport prefetch_bytes, prefetch_to_write
from shardserver.protocol.batch cimport stamp as stamp_batch
from shardserver.protocol.sends cimport CallbackWaiter, Target, Waiter
from shardserver.storage.appends cimport drop_first, drop_last, first_of, last_of, length_of, push, release
from shardserver.storage.clock cimport SystemClock

cdef enum:
    KIND_BATCH = 1
    BATCH_HEADER = 256
    LARGE_BATCH = 64 * 1024  # below, giving the interpreter's lock away takes longer than the checksum
    # What a `memory` partition gathers before it writes within its second, and how far its disk may fall behind.
    MAX_GATHER_BYTES = 8 << 20
    BACKLOG_LIMIT_BYTES = 64 << 20
    WRITE_OVERHEAD = 128 + 24  # of a journal write with one record
    # Small batches share blocks.
    LEAST_SHARING = 4
    LEAST_SHARED = 1024
    MOST_SHARED = 64 * 1024
    SHARE_OF_TAIL = 16
    EXPECTED_BYTES = 512  # of a batch: the processor sees by itself that the rest is wanted

assert KIND_BATCH == fmt.KIND_BATCH
assert WRITE_OVERHEAD == fmt.WRITE_HEADER_BYTES + fmt.RECORD_HEADER_BYTES


cdef dict VISIBLE = {Durability.FSYNC: DURABLE, Durability.WRITE: WRITTEN, Durability.MEMORY: APPENDED}


cdef class Admission:
    """Why a shard refuses appends now: the disk is nearly full, or it is read-only. None: they are taken."""


cdef class Wakers:
    """What a log tells its shard."""

    cdef int wake(self, AppendLog log) except -1:
        """There is something to write."""
        raise NotImplementedError

    cdef int keep_cached(self, AppendLog log) except -1:
        """Its tail holds something that is in a segment too."""
        raise NotImplementedError


cdef class AppendLog(Target):
    """Owned by one shard. Offsets in rising order, each the first one that is *not yet* what its name says:

        flushed_end <= durable_end <= next_offset      journaled_end: given to a journal write or a run

    What refuses appends: `refusal` (it is leaving or arriving: no changes of offsets either), `fenced` (a failed write).
    What refuses reads: `closed` (another shard may have its files), `set_aside` (recovery could not bring back all: reads
    at the end say so). waiting_bytes: of batches without an offset. backlog_bytes: stamped, and neither in the journal nor
    in a segment yet. running: a run is in flight. pinned_sequence: the journal file that is kept for it; 0: none.
    is_served: its shard has not forgotten it. is_late: what nobody waits for has waited for its time; it is to be written
    now.
    """

    def __init__(self, resources, identity, Wakers wakers, TailTotal total):
        settings = resources.settings
        self._clock, self._admission = resources.clock, resources.admission
        self._system_clock = resources.clock if isinstance(resources.clock, SystemClock) else None
        self._wakers, self._total = wakers, total
        self.tail = Tail(total)
        self._max_write_bytes, self._direct_bytes = settings.max_write_bytes, settings.direct_bytes
        self._flush_run_bytes = settings.flush_run_bytes
        self.identity = identity

    def __dealloc__(self):
        release(&self._waiting)
        release(&self._acks)

    @property
    def identity(self):
        """A PartitionIdentity."""
        return self._identity

    @identity.setter
    def identity(self, identity):
        self._identity = identity
        self.uid, self._term, self._partition_id = identity.uid, identity.term, identity.partition_id
        self._save_bytes, self._save_messages = identity.save_bytes, identity.save_messages
        self._visible = VISIBLE[identity.durability]

    # Appends

    def append(self, batch, uint32_t count, done):
        """Queue a checked batch of count messages; the log owns the bytes from here on.

        done gets the base offset once the batch is as durable as its topic says, or the error that refused it.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(batch, &view, PyBUF_WRITABLE)
        data, size = <uint8_t*>view.buf, view.len
        PyBuffer_Release(&view)  # the bytes stay where they are: a block is in its arena, and nobody resizes the others
        if size < BATCH_HEADER:
            raise ValueError(f"a batch of {BATCH_HEADER} bytes or more, got {size}")
        self.admit(batch, data, size, count, CallbackWaiter(done), 0)

    cdef int take(self, Block batch, uint32_t count, Waiter waiter, uint64_t ticket) except -1:
        return self.admit_or_fence(batch, batch.data, batch.size, count, waiter, ticket)

    cdef void expect(self, size_t size) noexcept:
        prefetch_to_write(<void*>self._open, 1)  # its reference count
        prefetch_to_write(self._open_at, min(size, self._open_left, <size_t>EXPECTED_BYTES))

    cdef int take_bytes(
        self, Arena arena, const uint8_t* batch, size_t size, uint32_t count, Waiter waiter, uint64_t ticket
    ) except -1:
        """Small ones lie back to back, as a segment will have them: a flush copies them in one piece."""
        cdef uint8_t* place
        if not self.has_room_for(arena, size):
            return self.take(arena.copy_bytes(batch, size), count, waiter, ticket)
        place = self._open_at
        memcpy(place, batch, size)
        self._open_at += size
        self._open_left -= size
        return self.admit_or_fence(self._open, place, size, count, waiter, ticket)

    cdef bint has_room_for(self, Arena arena, size_t size) except -1:
        """In the shared block, maybe a new one. False: it is to have one of its own, as of a shared one it would take a
        quarter or more, and as much could be left over.
        """
        cdef size_t shared
        if size <= self._open_left:
            return True
        shared = self.shared_bytes()
        if size > shared // LEAST_SHARING:
            return False
        try:
            self._open = arena.allocate(shared)
        except ArenaFullError:
            return False
        if arena.is_scattered:
            arena.use_huge_pages(self._open)
        self._open_at, self._open_left = self._open.data, shared
        return True

    cdef size_t shared_bytes(self) noexcept:
        """Of a new shared block: about a sixteenth of what is in memory here, as the last one is filled in part only."""
        cdef size_t shared = LEAST_SHARED, wanted = (self.tail.bytes + self.waiting_bytes) // SHARE_OF_TAIL
        while shared < MOST_SHARED and shared < wanted:
            shared *= 2
        return shared

    cdef void close_block(self) noexcept:
        """What is in it goes as soon as nobody reads it any more."""
        self._open, self._open_at, self._open_left = None, NULL, 0

    cdef int admit_or_fence(
        self, object held, uint8_t* data, size_t size, uint32_t count, Waiter waiter, uint64_t ticket
    ) except -1:
        try:
            return self.admit(held, data, size, count, waiter, ticket)
        except Exception as error:  # a bug amid a change: what is in memory of this partition may be half of it
            self.fence_after_bug("an append", error)
            raise

    cdef int admit(
        self, object held, uint8_t* data, size_t size, uint32_t count, Waiter waiter, uint64_t ticket
    ) except -1:
        cdef Append* new
        refusal = self.refusal or self.fenced or self._admission.refusal
        if refusal is not None:
            return waiter.refuse(ticket, refusal)
        if self._visible == APPENDED:
            self.acknowledge_later(self.stamp(held, data, size, count, self.now_us()), waiter, ticket)
            self.confirm_acks()
        else:
            new = push(&self._waiting)
            new.data, new.size, new.count, new.ticket = data, size, count, ticket
            new.held, new.waiter = <PyObject*>held, <PyObject*>waiter
            Py_INCREF(held)
            Py_INCREF(waiter)
            self.waiting_bytes += size
            prefetch_bytes(<void*>self.tail, TAIL_BYTES)  # the journal write that carries it wants that
        return self._wakers.wake(self)

    cdef uint64_t now_us(self) except? 0:
        return self._clock() if self._system_clock is None else self._system_clock.now_us()

    cdef Entry* stamp(self, object held, uint8_t* data, size_t size, uint32_t count, uint64_t now) except NULL:
        cdef Entry* entry
        self.last_timestamp = max(self.last_timestamp, now)
        if size < LARGE_BATCH:
            stamp_batch(data, size, self._partition_id, self.next_offset, self.last_timestamp)
        else:
            with nogil:
                stamp_batch(data, size, self._partition_id, self.next_offset, self.last_timestamp)
        entry = self.tail.add(self.next_offset, count, self.last_timestamp, held, data, size)
        self.next_offset += count
        self.backlog_bytes += size
        return entry

    cdef int acknowledge_later(self, Entry* entry, Waiter waiter, uint64_t ticket) except -1:
        cdef Append* ack = push(&self._acks)
        ack.base, ack.end, ack.ticket = entry.base, entry.base + entry.count, ticket
        ack.held, ack.waiter = NULL, <PyObject*>waiter
        Py_INCREF(waiter)
        return 0

    cdef int stamp_first(self, uint64_t now) except -1:
        """Give the first batch that waits its offset; it is the tail's last entry then."""
        cdef Append one = first_of(&self._waiting)[0]
        drop_first(&self._waiting)
        self.waiting_bytes -= one.size
        held, waiter = <object>one.held, <Waiter>one.waiter
        Py_DECREF(held)
        Py_DECREF(waiter)
        return self.acknowledge_later(self.stamp(held, one.data, one.size, one.count, now), waiter, one.ticket)

    def stamp_waiting(self, uint64_t least_bytes):
        """Give offsets to what waits, until least_bytes of it have theirs, or all."""
        cdef uint64_t stop = self.backlog_bytes + least_bytes
        while length_of(&self._waiting) and self.backlog_bytes < stop:
            self.stamp_first(self.now_us())

    def take_back(self, entry):
        """Replay: a TailEntry that goes on where the log ends is in it, and in a journal that was read."""
        self.tail.append(entry)
        self.last_timestamp = max(self.last_timestamp, <uint64_t>entry.timestamp)
        self.next_offset = self.journaled_end = self.durable_end = self.written_end = entry.end_offset

    def note_flushed(self, uint64_t end):
        """All below end is in a segment, synced: what memory has of it may go."""
        self.flushed_end, self.encoded_hint = end, None
        if not self._is_cached:
            self._wakers.keep_cached(self)

    def replace_tail(self):
        """An empty one; gives the old one, which counts in the shard's total no more."""
        old = self.tail
        old.leave_total()
        self.close_block()
        self.tail = Tail(self._total)
        return old

    # What waits, and for what

    @property
    def unanswered(self):
        """Appends whose caller has been told nothing yet."""
        return length_of(&self._waiting) + length_of(&self._acks)

    @property
    def has_waiting(self):
        """Batches without an offset."""
        return length_of(&self._waiting) > 0

    @property
    def has_work(self):
        """Something here has to reach the journal or a segment. Of a fenced log nobody knows what is right: nothing."""
        return self.has_unwritten()

    cdef bint has_unwritten(self) noexcept:
        return self.fenced is None and (length_of(&self._waiting) > 0 or self.journaled_end < self.next_offset)

    @property
    def is_memory(self):
        return self._visible == APPENDED

    @property
    def high_watermark(self):
        """The first offset that polls do not see; it follows what the topic's durability says (docs/durability.md)."""
        return self.visible_end()

    cdef uint64_t visible_end(self) noexcept nogil:
        if self._visible == DURABLE:
            return self.durable_end
        return self.written_end if self._visible == WRITTEN else self.next_offset

    @property
    def unwritten_bytes(self):
        return self.waiting_bytes + self.backlog_bytes

    @property
    def is_due(self):
        """Write now: a client waits, or so much has gathered in a `memory` partition as its topic wants at once."""
        return self.has_due_work()

    cdef bint has_due_work(self) noexcept:
        if self.fenced is not None:
            return False
        if self._visible != APPENDED:
            return length_of(&self._waiting) > 0 or self.backlog_bytes >= self._max_write_bytes
        if self.running:
            return False
        if self.is_late and self.journaled_end < self.next_offset:
            return True
        if self.backlog_bytes >= self.gather_bytes():
            return True
        return 0 < self._save_messages <= self.next_offset - self.journaled_end

    cdef uint64_t gather_bytes(self) noexcept nogil:
        return min(self._save_bytes if self._save_bytes else <uint64_t>MAX_GATHER_BYTES, self._flush_run_bytes)

    @property
    def wants_run(self):
        """So much waits that a run of its own is cheaper than the journal."""
        return self.is_bulk()

    cdef bint is_bulk(self) noexcept:
        cdef uint64_t least = self._direct_bytes
        if self.running or self.fenced is not None:
            return False
        if self._visible == APPENDED and not self.is_late:
            least = max(least, self.gather_bytes())
        return self.waiting_bytes + self.backlog_bytes >= least

    @property
    def first_is_oversize(self):
        """The oldest batch that has no offset fits into no journal write."""
        return self.has_oversize_first()

    cdef bint has_oversize_first(self) noexcept:
        return length_of(&self._waiting) > 0 and first_of(&self._waiting).size + WRITE_OVERHEAD > self._max_write_bytes

    @property
    def waits_for_run(self):
        """Nothing more of it goes to the journal before the run in flight has ended."""
        return self.is_held_by_run()

    cdef bint is_held_by_run(self) noexcept:
        if self.running == IDLE:
            return False
        return self.running == DIRECT or self._visible == APPENDED or self.has_oversize_first()

    def recount_backlog(self):
        self.backlog_bytes = self.tail.bytes_from(self.journaled_end)

    # Into the journal

    def journal_into(self, Staging staging not None, uint32_t shard, uint64_t sequence):
        return self.stage_into(staging, shard, sequence)

    cdef int64_t stage_into(self, Staging staging, uint32_t shard, uint64_t sequence) except -2:
        """Stage what may go into the write being built, in the journal file `sequence`.

        Gives the first offset that is not in it; -1: nothing is. While a direct run is in flight, nothing of the
        partition goes to the journal (storage rule 3).
        """
        cdef uint64_t before = self.journaled_end, now
        cdef size_t place
        cdef Entry* entry
        if self.running == DIRECT or self.fenced is not None or (self._visible == APPENDED and self.running):
            return -1
        if self.journaled_end < self.next_offset:
            place = self.tail.place_of(self.journaled_end)
            while place < self.tail._end and staging.fits(self.tail.at_place(place).size):
                self.journal_entry(self.tail.at_place(place), staging, shard, sequence)
                place += 1
        if self.journaled_end == self.next_offset and length_of(&self._waiting):
            now = self.now_us()
            while length_of(&self._waiting) and staging.fits(first_of(&self._waiting).size):
                self.stamp_first(now)
                self.journal_entry(self.tail.at_place(self.tail._end - 1), staging, shard, sequence)
        return <int64_t>self.journaled_end if self.journaled_end > before else -1

    cdef int journal_entry(self, Entry* entry, Staging staging, uint32_t shard, uint64_t sequence) except -1:
        staging.add_bytes(KIND_BATCH, 0, shard, self.uid, self._term, entry.data, entry.size)
        entry.sequence = sequence
        self.journaled_end = entry.base + entry.count
        self.backlog_bytes -= entry.size
        return 0

    # Answers

    def note_written(self, uint64_t end):
        self.set_written(end)

    def note_durable(self, uint64_t end):
        self.set_durable(end)

    def release_acks(self):
        self.confirm_acks()

    cdef int set_written(self, uint64_t end) except -1:
        self.written_end = max(self.written_end, end)
        return self.confirm_acks()

    cdef int set_durable(self, uint64_t end) except -1:
        self.durable_end = max(self.durable_end, end)
        self.written_end = max(self.written_end, end)
        return self.confirm_acks()

    cdef int confirm_acks(self) except -1:
        """Confirm what is as durable as promised. A waiter may append again from in here."""
        cdef uint64_t visible = self.visible_end()
        cdef Append ack
        if self._visible == APPENDED and self.backlog_bytes > BACKLOG_LIMIT_BYTES:
            visible = self.written_end  # the disk is slower than the producers: let them wait for it
        while length_of(&self._acks) and first_of(&self._acks).end <= visible:
            ack = first_of(&self._acks)[0]
            drop_first(&self._acks)
            waiter = <Waiter>ack.waiter
            Py_DECREF(waiter)
            (<Waiter>waiter).confirm(ack.ticket, ack.base)
        return 0

    def fail_waiting(self, error):
        """Refuse what has no offset yet."""
        self.waiting_bytes = 0
        refuse_all(&self._waiting, error)

    def fence_after_bug(self, what, error):
        """What failed, and how: nobody knows what is half changed."""
        self.fence(StorageError(f"{what} failed inside the server: {error!r}"))

    def fence(self, error):
        """Take no more appends: what was acknowledged may be half changed."""
        self.fenced = error
        self.fail_waiting(error)
        refuse_all(&self._acks, error)

    def roll_back(self, uint64_t offset, error):
        """Nothing from offset on was acknowledged or journaled: give those offsets back, refuse their batches."""
        cdef Appends refused
        memset(&refused, 0, sizeof(refused))
        self.tail.cut_from(offset)
        self.next_offset = offset
        while length_of(&self._acks) and last_of(&self._acks).end > offset:
            push(&refused)[0] = last_of(&self._acks)[0]
            drop_last(&self._acks)
        refuse_all(&refused, error, backwards=True)


cdef int refuse_all(Appends* appends, error, bint backwards=False) except -1:
    """Those that are in it now: who is refused may append again from in here."""
    cdef Appends refused = appends[0]
    cdef Append one
    memset(appends, 0, sizeof(Appends))
    try:
        while length_of(&refused):
            if backwards:
                one = last_of(&refused)[0]
                drop_last(&refused)
            else:
                one = first_of(&refused)[0]
                drop_first(&refused)
            if one.held != NULL:
                Py_DECREF(<object>one.held)
            waiter = <Waiter>one.waiter
            Py_DECREF(waiter)
            (<Waiter>waiter).refuse(one.ticket, error)
    finally:
        release(&refused)
    return 0
