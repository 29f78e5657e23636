"""A partition's appends, for cimport. Docstrings in append_log.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from shardserver.memory.arena cimport Arena, Block
from shardserver.protocol.sends cimport Target, Waiter
from shardserver.storage.appends cimport Append, Appends
from shardserver.storage.clock cimport SystemClock
from shardserver.storage.staging cimport Staging
from shardserver.storage.tail cimport TAIL_BYTES, Entry, Tail, TailTotal

cpdef enum Running:
    IDLE
    FLUSH
    DIRECT


cdef enum:
    LOG_BYTES = 472  # of a log, its reference count first: what each append touches


cdef enum Visible:  # which end polls see
    DURABLE
    WRITTEN
    APPENDED


cdef class Admission:
    cdef public object refusal


cdef class Wakers:
    cdef int wake(self, AppendLog log) except -1
    cdef int keep_cached(self, AppendLog log) except -1


cdef class AppendLog(Target):
    # What each append touches stands together, before all else: a connection asks for its memory ahead of its use.
    cdef public object refusal
    cdef public object fenced
    cdef Admission _admission
    cdef Wakers _wakers
    cdef public object on_append  # told of one while a run goes on; None: there is none that would take it
    cdef uint8_t _visible
    cdef bint _is_dirty
    cdef bint _is_listed
    cdef bint _is_cached
    cdef public bint is_served
    cdef public bint is_late
    cdef public int running
    cdef uint32_t _term
    cdef readonly uint64_t waiting_bytes
    cdef readonly uint64_t backlog_bytes
    cdef uint64_t _direct_bytes
    cdef Appends _waiting
    cdef readonly Tail tail
    cdef Block _open  # where small batches go, one behind the other, or None: _open_left bytes from _open_at on are free
    cdef uint8_t* _open_at
    cdef size_t _open_left
    cdef SystemClock _system_clock  # the same as _clock, or None where tests have another
    cdef readonly uint64_t uid
    cdef uint64_t _partition_id
    cdef public uint64_t last_timestamp
    cdef public uint64_t next_offset
    cdef public uint64_t journaled_end
    cdef public uint64_t pinned_sequence
    cdef public uint64_t durable_end
    cdef public uint64_t written_end
    cdef Appends _acks
    cdef public uint64_t flushed_end
    cdef object _identity
    cdef object _clock
    cdef TailTotal _total
    cdef uint64_t _save_bytes
    cdef uint64_t _save_messages
    cdef uint64_t _max_write_bytes
    cdef uint64_t _flush_run_bytes
    cdef public object closed
    cdef public object set_aside
    cdef public object encoded_hint  # what hint() gives, or None: it has changed; encode_hint() makes it

    cdef int admit_or_fence(
        self, object held, uint8_t* data, size_t size, uint32_t count, Waiter waiter, uint64_t ticket
    ) except -1
    cdef int admit(
        self, object held, uint8_t* data, size_t size, uint32_t count, Waiter waiter, uint64_t ticket
    ) except -1
    cdef bint has_room_for(self, Arena arena, size_t size) except -1
    cdef size_t shared_bytes(self) noexcept
    cdef void close_block(self) noexcept
    cdef Entry* stamp(self, object held, uint8_t* data, size_t size, uint32_t count, uint64_t now) except NULL
    cdef uint64_t now_us(self) except? 0
    cdef int stamp_first(self, uint64_t now) except -1
    cdef int acknowledge_later(self, Entry* entry, Waiter waiter, uint64_t ticket) except -1
    cdef int journal_entry(self, Entry* entry, Staging staging, uint32_t shard, uint64_t sequence) except -1
    cdef uint64_t visible_end(self) noexcept nogil
    cdef bint has_due_work(self) noexcept
    cdef bint is_bulk(self) noexcept
    cdef uint64_t gather_bytes(self) noexcept nogil
    cdef bint has_unwritten(self) noexcept
    cdef bint has_oversize_first(self) noexcept
    cdef bint is_held_by_run(self) noexcept
    # No cpdef: for a subclass in Python each call by C would look for another method in the object's dict.
    cdef int64_t stage_into(self, Staging staging, uint32_t shard, uint64_t sequence) except -2
    cdef int set_written(self, uint64_t end) except -1
    cdef int set_durable(self, uint64_t end) except -1
    cdef int confirm_acks(self) except -1
