"""The writing half of a journal, for cimport. Docstrings in journal_writer.pyx."""

from libc.stdint cimport uint64_t

from shardserver.storage.staging cimport Staging
from shardserver.storage.synced_write cimport SyncFaults


cdef class JournalWriter:
    cdef object _disk
    cdef SyncFaults _faults
    cdef readonly Staging staging
    cdef readonly uint64_t journal_id
    cdef uint64_t _nonce
    cdef uint64_t _max_write_bytes
    # The file that writes go to, None before the first; and where in it the next one stands.
    cdef readonly object current
    cdef readonly uint64_t position
    cdef object _file
    cdef uint64_t _file_bytes
    cdef uint64_t _last_sequence
    cdef uint64_t _previous_sequence
    cdef uint64_t _previous_end
    cdef bint _is_opening
    cdef readonly uint64_t writes
    cdef readonly uint64_t written_bytes
    cdef readonly bint in_flight
    # Files from `published_oldest_live` on are needed: a synced write has said so.
    cdef readonly uint64_t published_oldest_live
    cdef uint64_t _oldest_live
    cdef object _on_end
    cdef public int files_in_use
    cdef public bint is_flush_due

    cdef uint64_t next_sequence(self) noexcept
    cdef uint64_t room(self) noexcept
    cpdef bint begin(self) except -1
    cpdef bint begin_reserved(self)
    cdef int submit_write(self, uint64_t oldest_live, bint clean, object on_written, object on_end) except -1
