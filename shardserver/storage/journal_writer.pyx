"""The writing half of a journal (journal.py): one write at a time, from the staging memory to its end.

No twin: what a write looks like is specified in journal_format.py, and the ring's order in journal.py; here is what is
done for each write.
"""

import secrets

from libc.stdint cimport uint64_t

from shardserver.memory.aligned import aligned_buffer
from shardserver.storage import journal_format as fmt

from shardserver.storage.staging cimport Staging
from shardserver.storage.synced_write cimport SyncFaults, start_write

cdef enum:
    BLOCK = 4096
    # Kept at the end of each file for writes without batches, so that a full file can still say that older ones are free.
    RESERVED = 64 * 1024
    LEAST_ROOM = 4 * BLOCK  # of a write without batches
    OPENING = 1
    FILE_START = 2
    CLEAN = 4

assert BLOCK == fmt.BLOCK_BYTES
assert (FILE_START, CLEAN, OPENING) == (fmt.FLAG_FILE_START, fmt.FLAG_CLEAN, fmt.FLAG_OPENING)


cdef class JournalWriter:
    """Owned by one shard. A subclass has the files: rotate() takes the next one, count_files() looks which are free."""

    def __init__(self, disk, SyncFaults faults not None, uint64_t journal_id, uint64_t max_write_bytes):
        self._disk, self._faults, self.journal_id = disk, faults, journal_id
        self._max_write_bytes = min(max_write_bytes, <uint64_t>fmt.MAX_WRITE_BYTES)
        self.staging = Staging(aligned_buffer(self._max_write_bytes))
        self._nonce = secrets.randbits(64)
        self._is_opening = True

    @property
    def sequence(self):
        """Sequence of the file that the next record goes to."""
        return self.next_sequence()

    cdef uint64_t next_sequence(self) noexcept:
        return self._last_sequence if self.current is not None else self._last_sequence + 1

    def rotate(self):
        """Take the next free file, if there is one."""
        raise NotImplementedError

    def count_files(self):
        """One was freed."""
        raise NotImplementedError

    def follow(self, uint64_t sequence, uint64_t end, uint64_t oldest_live):
        """Write behind what was found: the next file links to that end."""
        self._previous_sequence, self._previous_end, self._last_sequence = sequence, end, sequence
        self.published_oldest_live = oldest_live

    def take_file(self, file):
        """Write into this JournalFile from its first block on. Gives its file sequence."""
        if self.current is not None:
            self._previous_sequence, self._previous_end = self._last_sequence, self.position
        self._last_sequence += 1
        self.current, self.position = file, BLOCK
        self._file, self._file_bytes = file.file, file.file_bytes
        return self._last_sequence

    cdef uint64_t room(self) noexcept:
        return min(self._max_write_bytes, self._file_bytes - self.position)

    cpdef bint begin(self) except -1:
        """Start building a write. False while one is in flight, or while no file can take batches."""
        cdef uint64_t needed = self._max_write_bytes + RESERVED
        if self.in_flight:
            return False
        if self.current is None or self.position + needed > self._file_bytes:
            if not self.rotate():
                return False
        self.staging.begin(self.room())
        return True

    cpdef bint begin_reserved(self):
        """Start building a write without batches, in the room that is kept for those."""
        if self.in_flight or self.current is None or self.position + LEAST_ROOM > self._file_bytes:
            return False
        self.staging.begin(self.room())
        return True

    def submit(self, oldest_live, *, clean, on_written, on_end):
        """Write what was staged and sync it. on_end gets a StorageError when that failed: this journal is over then."""
        self.submit_write(oldest_live, clean, on_written, on_end)

    cdef int submit_write(self, uint64_t oldest_live, bint clean, object on_written, object on_end) except -1:
        cdef uint64_t position = self.position
        cdef int flags = (FILE_START if position == BLOCK else 0) | (CLEAN if clean else 0)
        flags |= OPENING if self._is_opening else 0
        staged = self.staging.seal(
            flags,
            self.journal_id,
            self._nonce,
            self._last_sequence,
            position,
            self._previous_sequence,
            self._previous_end,
            oldest_live,
        )
        self.in_flight, self._is_opening = True, False
        self._oldest_live, self._on_end = oldest_live, on_end
        self.position += <uint64_t>len(staged)
        self.writes += 1
        self.written_bytes += <uint64_t>len(staged)
        return start_write(self._disk, self._faults, self._file, position, [staged], on_written, self.ended)

    def ended(self, error):
        on_end, self._on_end = self._on_end, None
        if error is None:  # else in_flight stays: nothing may be written behind a write whose fate is unknown
            self.in_flight = False
            if self._oldest_live > self.published_oldest_live:
                self.published_oldest_live = self._oldest_live
                self.count_files()
        on_end(error)
