"""Synced writes for cimport. Docstrings in synced_write.pyx."""

from libc.stdint cimport uint64_t

from shardserver.storage.sync_times cimport SyncTimes


cdef class SyncFaults:
    cdef public uint64_t own
    cdef public object others
    cdef public object on_fault
    cdef public object on_slow
    cdef public SyncTimes times
    cdef public double slow_s

    cdef int note_time(self, path, double seconds, files) except -1
    cdef uint64_t count(self) except? 0xFFFFFFFFFFFFFFFF


cdef class SyncedWrite:
    cdef object _disk
    cdef SyncFaults _faults
    cdef object _file
    cdef uint64_t _position
    cdef object _buffers
    cdef object _on_written
    cdef object _on_end
    cdef uint64_t _before
    cdef double _began_s

    cdef int start(self) except -1


cdef int start_write(
    object disk, SyncFaults faults, object file, uint64_t position, object buffers, object on_written, object on_end
) except -1
