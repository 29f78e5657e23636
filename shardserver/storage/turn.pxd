"""The logs of a shard that have something to write, for cimport. Docstrings in turn.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from shardserver.storage.append_log cimport LOG_BYTES, WRITTEN, AppendLog, Wakers
from shardserver.storage.staging cimport Staging
from shardserver.storage.tail cimport TAIL_BYTES, Entry, Tail, TailTotal


cdef class Staged:
    cdef list _logs
    cdef uint64_t* _ends
    cdef size_t _room
    cdef readonly list unpinned
    cdef readonly bint shows_written
    cdef readonly bint has_small

    cdef int add(self, AppendLog log, uint64_t end) except -1
    cpdef note_durable(self)


cdef class Turn(Wakers):
    cdef object _schedule
    cdef object _linger
    cdef readonly TailTotal tails
    cdef readonly size_t dirty
    cdef list _listed
    cdef object _cached
    cdef public bint is_scheduled
    cdef public bint is_lingering
    cdef public bint is_writing
    cdef public double small_at
    cdef readonly uint64_t wakes

    cdef int list_dirty(self, AppendLog log) except -1
    cdef void take_dirty(self, AppendLog log) noexcept
    cdef bint any_bulk(self) except -1
    cdef bint any_due(self) except -1
    cpdef Staged stage(self, Staging staging, uint32_t shard, uint64_t sequence, size_t least_bytes)
    cdef int stage_log(self, AppendLog log, Staged staged, Staging staging, uint32_t shard, uint64_t sequence) except -1
    cpdef bint evict_to(self, uint64_t limit) except -1
    cdef size_t evict_from(self, AppendLog log, uint64_t excess, size_t most) except? 0
