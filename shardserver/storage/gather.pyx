"""From a partition's tail to a run: large batches of the arena as they lie there, each padded in its own block, the others
copied together into staging. Specification: gather_python.py.
"""

from cpython.buffer cimport PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from shardserver.memory.arena import padded
from shardserver.storage.index import INDEX_INTERVAL_BYTES
from shardserver.storage.run import Run

from shardserver.memory.prefetch cimport prefetch_bytes
from shardserver.storage.tail cimport Entry, Tail, bytes_of

cdef enum:
    BLOCK = 4096
    COPIED_AHEAD = 2  # batches
    ASKED_BYTES = 512  # of each: the processor sees by itself that the rest is wanted

cdef uint64_t MARK_INTERVAL = INDEX_INTERVAL_BYTES


cdef inline void ask_for(const Entry* entry) noexcept nogil:
    prefetch_bytes(entry.data, min(entry.size, <size_t>ASKED_BYTES))


cdef class Gathering:
    """A run being built."""

    cdef object _pool
    cdef object _run
    cdef uint64_t _size
    cdef uint64_t _mark_from

    cdef int mark(self, const Entry* entry, uint64_t place) except -1:
        if place >= self._mark_from:
            self._run.marks.append((entry.base, place, entry.timestamp))
            self._mark_from = place + MARK_INTERVAL
        return 0

    cdef int add_whole(self, const Entry* entry, whole) except -1:
        self.mark(entry, self._size)
        self._run.buffers.append(whole)
        self._size += len(whole)
        return 0

    cdef int add_gathered(self, const Entry* entries, size_t count, uint64_t total) except -1:
        """Copy them back to back, and zeros behind them up to a whole block. Those that lie so already go in one piece."""
        cdef uint64_t end = (total + BLOCK - 1) // BLOCK * BLOCK, position = 0, copied = 0
        cdef Py_buffer view
        cdef const uint8_t* piece = entries.data
        cdef size_t number
        staging = self._pool.take(end)
        PyObject_GetBuffer(staging, &view, PyBUF_WRITABLE)
        try:
            for number in range(count):
                if number + COPIED_AHEAD < count:
                    ask_for(entries + number + COPIED_AHEAD)
                self.mark(entries + number, self._size + position)
                position += entries[number].size
                if number + 1 == count or entries[number + 1].data != entries[number].data + entries[number].size:
                    memcpy(<uint8_t*>view.buf + copied, piece, position - copied)
                    copied = position
                    piece = entries[number + 1].data if number + 1 < count else NULL
            memset(<uint8_t*>view.buf + position, 0, end - position)
        finally:
            PyBuffer_Release(&view)
        self._run.staging.append(staging)
        self._run.buffers.append(staging[:end])
        self._size += end
        return 0


def build_run(
    Tail tail not None,
    uint64_t start,
    uint64_t limit,
    uint64_t most_bytes,
    pool,
    uint64_t whole_bytes,
    uint64_t mark_from,
):
    """A run of the batches from offset start on that end at or before limit: most_bytes of them, but at least one.

    whole_bytes: from so many on a batch is not copied. mark_from: the first place that a sparse index is to name.
    """
    cdef size_t place, first
    cdef uint64_t taken = 0, gathered = 0, end_offset = start
    cdef Entry* entry
    cdef Gathering run = Gathering.__new__(Gathering)
    run._pool, run._run, run._mark_from = pool, Run(), mark_from
    tail.settle()
    place = first = tail.place_of(start)
    while place < tail._end:
        entry = tail._entries + place
        if entry.base + entry.count > limit or (taken and taken + entry.size > most_bytes):
            break
        taken += entry.size
        end_offset = entry.base + entry.count
        whole = padded(bytes_of(entry)) if entry.size >= whole_bytes else None
        if whole is None:
            gathered += entry.size
        else:
            if place > first:
                run.add_gathered(tail._entries + first, place - first, gathered)
            run.add_whole(entry, whole)
            first, gathered = place + 1, 0
        place += 1
    if place > first:
        run.add_gathered(tail._entries + first, place - first, gathered)
    run._run.size_bytes, run._run.end_offset = run._size, end_offset
    return run._run
