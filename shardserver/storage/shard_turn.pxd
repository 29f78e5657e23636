"""The turns of a shard's logs, for cimport. Docstrings in shard_turn.pyx."""

from libc.stdint cimport uint64_t

from shardserver.storage.append_log cimport AppendLog
from shardserver.storage.journal_writer cimport JournalWriter
from shardserver.storage.turn cimport Staged, Turn


cdef class WriteContent:
    cdef public Staged batches
    cdef public list offsets
    cdef public list adoptions
    cdef public uint64_t checkpoint_sequence


cdef class ShardTurn:
    cdef readonly object resources
    cdef public JournalWriter journal
    cdef public object failed
    cdef readonly object offsets
    cdef readonly dict _partitions
    cdef readonly Turn _turn
    cdef readonly int _shard
    cdef uint64_t _tail_bytes
    cdef uint64_t _direct_bytes
    cdef double _linger_s
    cdef object _loop
    # What a journal write may carry beside batches: logs whose hint is due, the rest of the file's checkpoint, adoptions.
    cdef readonly dict _hints
    cdef readonly object _checkpoint
    cdef readonly object _adoptions
    cdef public uint64_t _checkpoint_started
    cdef public uint64_t _checkpoint_sequence
    cdef public bint _force_write
    cdef bint _lingered
    cdef object _linger
    cdef readonly WriteContent _in_flight
    cdef public bint _is_watched
    # What keeps journal files: logs by the sequence of the oldest one that they need, and the oldest uncovered offset.
    cdef readonly dict _pinned
    cdef public uint64_t _uncovered_offsets

    cdef object loop(self)
    cdef bint has_work(self) except -1
    cdef int build_write(self) except -1
    cpdef WriteContent _fill(self)
    cdef bint add_hint(self, AppendLog log) except? False
    cdef int add_checkpoint(self) except -1
    cdef int add_hints(self) except -1
    cdef int add_batches(self, WriteContent content) except -1
    cpdef _submit(self, WriteContent content, bint clean)
    cdef int commit(self, WriteContent content) except -1
    cpdef uint64_t _oldest_live(self) except? 0
