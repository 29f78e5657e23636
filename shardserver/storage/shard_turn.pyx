"""The turns of a shard's logs: one journal write after the other, from what waits to its answers.

One turn, in this order: start the direct runs that are due, then, if no journal write is in flight, build one from the
checkpoint, hints, adoptions, committed offsets and small appends that wait, and submit it. Acknowledgements follow its
completion. Nothing waits for a timer but `memory` records and hints.

No twin: what a write carries beside batches, and what a failure does, is Python in shard_log.py; here is what is done
for each write, and the fault suites of storage test it.
"""

import asyncio
import logging
from collections import deque

from libc.stdint cimport uint8_t, uint64_t

from shardserver.errors import StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.committed_offsets import CommittedOffsets

from shardserver.storage.append_log cimport AppendLog
from shardserver.storage.journal_writer cimport JournalWriter
from shardserver.storage.turn cimport Staged, Turn

log = logging.getLogger("shardserver.storage.shard_log")

cdef enum:
    KIND_HINT = 3
    # So often the sockets may be looked at after a journal write before the next one begins.
    GATHER_ROUNDS = 4

assert KIND_HINT == fmt.KIND_HINT


cdef class WriteContent:
    """What one journal write carries, to be answered when it completes. adoptions: those that end in it."""

    def __cinit__(self):
        self.batches, self.offsets, self.adoptions = Staged(), [], []


cdef class ShardTurn:
    """The base of ShardLog, which has what is rare: _start_runs(), _add_adoptions(content), _add_offsets(content), _refuse_when_full(), _pin(log, sequence), _fail(error),
    _note_progress(), _plan_flush(), _free_journal().

    journal: set before the first turn. _is_watched: somebody waits for _note_progress.
    """

    def __init__(self, resources, shard):
        settings = resources.settings
        self.resources, self._shard = resources, shard
        self._tail_bytes, self._direct_bytes = settings.tail_bytes, settings.direct_bytes
        self._linger_s = settings.linger_s
        self._partitions, self._hints, self._pinned = {}, {}, {}
        self._checkpoint, self._adoptions = deque(), deque()
        self.offsets = CommittedOffsets(self._on_offset)
        self._turn = Turn(self._schedule_turn, self._linger_turn)

    cdef object loop(self):
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _on_offset(self, record):
        if record.done:
            self._schedule_turn()
        else:
            self._linger_turn()

    def _schedule_turn(self):
        if not self._turn.is_scheduled and self.failed is None:
            self._turn.is_scheduled = True
            self.loop().call_soon(self._take_turn)

    def _linger_turn(self):
        """What nobody waits for goes with the next write, or after linger_s."""
        if self._linger is None and self.failed is None:
            if self._turn.dirty or self.offsets.waiting or self._hints:
                self._linger = self.loop().call_later(self._linger_s, self._end_linger)
                self._turn.is_lingering = True

    def _end_linger(self):
        self._stop_linger()
        self._lingered = True
        self._turn.mark_late()
        self._schedule_turn()

    def _stop_linger(self):
        if self._linger is not None:
            self._linger.cancel()
            self._linger, self._turn.is_lingering = None, False

    def _take_turn(self):
        self._turn.is_scheduled = False
        if self.failed is not None:
            return
        if self._turn.any_bulk():
            self._start_runs()
        if self.journal.in_flight:
            return  # its end looks again
        if self.has_work():
            self.build_write()
        else:
            self._linger_turn()

    cdef bint has_work(self) except -1:
        if self._lingered or self._force_write or self._checkpoint or self._adoptions:
            return True
        return self._turn.any_due() or self.offsets.waited_for > 0

    cdef int build_write(self) except -1:
        cdef WriteContent content = None
        self._stop_linger()
        self._lingered = False
        if not (self._turn.dirty or self.offsets.waiting or self._hints or self._adoptions or self._force_write):
            return 0
        if self.journal.begin():
            content = self._fill()
            if not (self.journal.staging.records or self._force_write):
                return 0  # what there is waits for the end of a run
        elif self.journal.begin_reserved():
            content = WriteContent()
        if content is None or not (self.journal.staging.records or self._force_write):
            self._refuse_when_full()
            return 0
        self._submit(content, False)
        return 0

    cpdef WriteContent _fill(self):
        cdef uint64_t sequence = self.journal.next_sequence()
        cdef WriteContent content = WriteContent()
        if sequence != self._checkpoint_started:
            self._checkpoint_started = sequence
            self._checkpoint = deque(self._partitions.values())
            self._plan_flush()
        if self._checkpoint:
            self.add_checkpoint()
        if not self._checkpoint:
            content.checkpoint_sequence = sequence
            if self._hints:
                self.add_hints()
            if self._adoptions:
                self._add_adoptions(content)
            if self.offsets.waiting:
                self._add_offsets(content)
            self.add_batches(content)
        return content

    cdef bint add_hint(self, AppendLog log) except? False:
        """Where its segment is synced up to (storage rule 11). False: it does not fit."""
        cdef bytes raw = log.encoded_hint
        if not log.is_served:
            return True
        if raw is None:
            raw = log.encode_hint()
        if raw is None:
            return True
        if not self.journal.staging.fits(len(raw)):
            return False
        self.journal.staging.add_bytes(
            KIND_HINT, 0, self._shard, log.uid, log._term, <const uint8_t*><const char*>raw, len(raw)
        )
        return True

    cdef int add_checkpoint(self) except -1:
        """The head of every file: of each log, as many as fit."""
        while self._checkpoint:
            if not self.add_hint(self._checkpoint[0]):
                return 0
            self._checkpoint.popleft()
        return 0

    cdef int add_hints(self) except -1:
        for uid, log in list(self._hints.items()):
            if not self.add_hint(log):
                return 0
            del self._hints[uid]
        return 0

    cdef int add_batches(self, WriteContent content) except -1:
        cdef uint64_t sequence = self.journal.next_sequence()
        content.batches = self._turn.stage(self.journal.staging, self._shard, sequence, self._direct_bytes)
        for partition in content.batches.unpinned:
            self._pin(partition, sequence)
        return 0

    cpdef _submit(self, WriteContent content, bint clean):
        cdef object on_written = None
        cdef uint64_t oldest_live
        self._force_write = False
        if content.batches.has_small or content.offsets:
            self._turn.small_at = self.loop().time()
        oldest_live = self._oldest_live()
        self.resources.hooks.before_submit()
        self._in_flight, self._turn.is_writing = content, True
        if content.batches.shows_written:
            on_written = content.batches.note_written
        self.journal.submit_write(oldest_live, clean, on_written, self._end_write)

    def _end_write(self, error):
        cdef WriteContent content = self._in_flight
        try:
            if error is None:
                self.commit(content)
        except Exception as bug:  # some of what the write carried may never be answered
            log.exception("log_task_failed")
            error = StorageError(f"a journal write was answered in part: {bug!r}")
        if error is not None:
            for record in content.offsets:
                for refused in record.done:
                    refused(error)
            self._refuse_adoptions(error, content.adoptions)
            self._fail(error)

    cdef int commit(self, WriteContent content) except -1:
        self._in_flight, self._turn.is_writing = None, False
        self._turn.is_scheduled = True
        self._checkpoint_sequence = max(self._checkpoint_sequence, content.checkpoint_sequence)
        content.batches.note_durable()
        for record in content.offsets:
            for done in record.done:
                done(None)
        for adoption in content.adoptions:
            adoption.journaled()
        if self._is_watched:
            self._is_watched = False
            self._note_progress()
        self._turn.evict_to(self._tail_bytes)
        self.loop().call_soon(self._gather)
        if self.journal.is_flush_due:
            self._free_journal()
        return 0

    def _gather(self):
        """Have the next turn once the answers have left and the sockets bring nothing new.

        Who was just answered asks again at once, and half as many journal writes cost less than a disk that waits.
        """
        cdef uint64_t seen
        cdef object refill = self.resources.hooks.refill
        for _ in range(GATHER_ROUNDS):
            seen = self._turn.wakes
            refill()
            if self._turn.wakes == seen:
                break
        self._take_turn()

    cpdef uint64_t _oldest_live(self) except? 0:
        """The oldest file that recovery would need: nothing in older ones is unflushed, uncovered or the checkpoint."""
        cdef uint64_t oldest = self.journal.next_sequence()
        if self._pinned:
            oldest = min(self._pinned)
        if self._uncovered_offsets:
            oldest = min(oldest, self._uncovered_offsets)
        return min(oldest, self._checkpoint_sequence) if self._checkpoint_sequence else oldest
