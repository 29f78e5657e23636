"""Which logs of a shard have something to write, and which have something in memory: the loops over them.

No twin: what each step does to a log is specified in append_log_python.py, and what a turn is in shard_log.py.
"""

from collections import deque

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from shardserver.memory.prefetch cimport prefetch_bytes


cdef enum:
    AHEAD = 4  # logs: about as long as memory takes to come
    EVICTED_AT_ONCE = 4096  # batches: about a millisecond


cdef inline void prefetch_log(list logs, Py_ssize_t number, Py_ssize_t count) noexcept:
    if number < count:
        prefetch_bytes(<void*>logs[number], LOG_BYTES)


cdef inline void prefetch_for_staging(list logs, Py_ssize_t number, Py_ssize_t count) noexcept:
    """Of the log `number` where its next batch will stand; of those behind it what leads there, each in its time."""
    cdef Tail tail
    prefetch_log(logs, number + 2 * AHEAD, count)
    if number + AHEAD < count:
        prefetch_bytes(<void*>(<AppendLog>logs[number + AHEAD]).tail, TAIL_BYTES)
    if number < count:
        tail = (<AppendLog>logs[number]).tail
        prefetch_bytes(tail.at_place(tail._end), sizeof(Entry))


cdef class Staged:
    """The batches of one journal write: logs, and up to where each is in it.

    unpinned: those of them that no journal file was kept for before. shows_written: one of them has somebody to tell
    before the sync. has_small: not all of them are bulk, which comes here while its segment is being made.
    """

    def __cinit__(self):
        self._logs, self.unpinned = [], []

    def __dealloc__(self):
        free(self._ends)

    def __len__(self):
        return len(self._logs)

    cdef int add(self, AppendLog log, uint64_t end) except -1:
        cdef size_t count = len(self._logs), room
        cdef uint64_t* grown
        if count == self._room:
            room = max(2 * self._room, <size_t>16)
            grown = <uint64_t*>realloc(self._ends, room * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError
            self._ends, self._room = grown, room
        self._ends[count] = end
        self._logs.append(log)
        self.shows_written = self.shows_written or log._visible == WRITTEN
        return 0

    def note_written(self):
        cdef size_t number = 0
        cdef AppendLog log
        for log in self._logs:
            log.set_written(self._ends[number])
            number += 1

    cpdef note_durable(self):
        cdef list logs = self._logs
        cdef Py_ssize_t number, count = len(logs)
        for number in range(count):
            prefetch_log(logs, number + AHEAD, count)
            (<AppendLog>logs[number]).set_durable(self._ends[number])


cdef class Turn(Wakers):
    """schedule(): have a turn soon. linger(): have one within the time that what nobody waits for may take.

    dirty: how many logs have something to write. tails: bytes in memory.
    is_scheduled, is_lingering: kept by the caller; while one is set, what it stands for is not asked for again.
    is_writing, small_at: kept by the caller; a journal write is in flight, whose end looks for more; when a small append
    was written last, in the loop's seconds. wakes: how often a log had something new.
    """

    def __init__(self, schedule, linger):
        self._schedule, self._linger = schedule, linger
        self.tails = TailTotal()
        # In the order in which they get their turn. A log that is dirty no more stays until its turn.
        self._listed = []
        self._cached = deque()

    cdef int wake(self, AppendLog log) except -1:
        if not log.is_served:
            return 0
        self.wakes += 1
        if log.on_append is not None:  # its run may take it; the end of that looks again
            log.on_append()
            return 0
        if not log._is_dirty:
            self.list_dirty(log)
        if log.has_due_work():
            if not self.is_scheduled and (not self.is_writing or log.is_bulk()):
                self._schedule()
        elif not self.is_lingering:
            self._linger()
        return 0

    cdef int list_dirty(self, AppendLog log) except -1:
        log._is_dirty = True
        self.dirty += 1
        if not log._is_listed:
            log._is_listed = True
            self._listed.append(log)
        return 0

    def look_again(self):
        """Have a turn if a log is dirty: one that was held back may go now."""
        if self.dirty and not self.is_scheduled:
            self._schedule()

    def dirty_logs(self):
        cdef AppendLog log
        return [log for log in self._listed if log._is_dirty]

    def mark_dirty(self, AppendLog log not None):
        """As a log does itself when it has taken an append."""
        self.wake(log)

    def take(self, AppendLog log not None):
        """It is dirty no more."""
        self.take_dirty(log)

    cdef void take_dirty(self, AppendLog log) noexcept:
        if log._is_dirty:
            log._is_dirty = log.is_late = False
            self.dirty -= 1

    def forget(self, AppendLog log not None):
        """It is not this shard's any more."""
        log.is_served = False
        self.take_dirty(log)
        self.drop_cached(log)
        log.tail.leave_total()

    # Writing

    cdef bint any_bulk(self) except -1:
        cdef AppendLog log
        for log in self._listed:
            if log._is_dirty and log.is_bulk():
                return True
        return False

    def bulk(self):
        """Dirty logs that want a run of their own."""
        cdef AppendLog log
        return [log for log in self._listed if log._is_dirty and log.is_bulk()]

    def any_small(self):
        """Something waits that is for the journal. What waits behind a run of its own partition is not."""
        cdef AppendLog log
        for log in self._listed:
            if log._is_dirty and not log.running and not log.is_bulk():
                return True
        return False

    def mark_late(self):
        """All that is dirty now has waited for its time."""
        cdef AppendLog log
        for log in self._listed:
            log.is_late = log._is_dirty

    cdef bint any_due(self) except -1:
        """Something that does not want a run of its own does not linger either."""
        cdef AppendLog log
        for log in self._listed:
            if log._is_dirty and not log.is_bulk() and log.has_due_work():
                return True
        return False

    cpdef Staged stage(self, Staging staging, uint32_t shard, uint64_t sequence, size_t least_bytes):
        """Stage what may go into the write being built, until fewer than least_bytes of it are left."""
        cdef Staged staged = Staged()
        cdef list listed = self._listed, later = []
        cdef AppendLog log
        cdef Py_ssize_t number, count = len(listed)
        cdef size_t used
        cdef bint is_full = False
        self._listed = []
        for number in range(count):
            prefetch_for_staging(listed, number + AHEAD, count)
            log = listed[number]
            if log._is_dirty and (is_full or log.is_bulk()):
                self._listed.append(log)  # a bulk one's run is held back; through the journal it would cost the others more
                continue
            log._is_listed = False
            if log._is_dirty:
                used = staging.used
                self.stage_log(log, staged, staging, shard, sequence)
                if 0 < staging.used - used < least_bytes:
                    staged.has_small = True
                if log._is_dirty:
                    later.append(log)  # the others come first
                    log._is_listed = True
                    is_full = not staging.fits(least_bytes)
        self._listed += later
        return staged

    cdef int stage_log(self, AppendLog log, Staged staged, Staging staging, uint32_t shard, uint64_t sequence) except -1:
        cdef int64_t end = log.stage_into(staging, shard, sequence)
        if end >= 0:
            staged.add(log, end)
            if not log.pinned_sequence:
                staged.unpinned.append(log)
        if log.is_held_by_run() or not log.has_unwritten():
            self.take_dirty(log)
        return 0

    # Memory

    cdef int keep_cached(self, AppendLog log) except -1:
        if log.is_served:
            log._is_cached = True
            self._cached.append(log)
        return 0

    def drop_cached(self, AppendLog log not None):
        if log._is_cached:
            log._is_cached = False
            self._cached.remove(log)

    @property
    def cached(self):
        """How many tails hold something that may go."""
        return len(self._cached)

    cpdef bint evict_to(self, uint64_t limit) except -1:
        """Drop the oldest batches of one log after the other while all tails have more than limit bytes.

        What is in no segment yet stays. False: there may be more to drop than one call does.
        """
        cdef AppendLog log
        cdef Py_ssize_t left = len(self._cached)
        cdef size_t batches = EVICTED_AT_ONCE
        while batches and left and self.tails.bytes > limit:
            left -= 1
            log = self._cached.popleft()
            batches -= self.evict_from(log, self.tails.bytes - limit, batches)
            if log.tail.has_below(log.flushed_end):
                self._cached.append(log)
            else:  # the end of its next run brings it back: who has nothing in segments is not looked at
                log._is_cached = False
        return batches > 0

    cdef size_t evict_from(self, AppendLog log, uint64_t excess, size_t most) except? 0:
        """So many batches were dropped."""
        cdef uint64_t end = min(log.flushed_end, log.visible_end())
        cdef uint64_t target = log.tail.bytes - min(excess, log.tail.bytes)
        cdef size_t dropped = 0
        while dropped < most and log.tail.bytes > target and log.tail.evict_oldest(end):
            dropped += 1
        if log.tail._first == log.tail._end:
            log.close_block()
        return dropped
