"""A write that counts only if no sync of the server failed meanwhile (storage rule 20).

A failed sync of any file may have dropped what other files had not synced yet, those of other shards on the same disk
included, and their own later syncs succeed all the same. So each write remembers the number of failures at its start,
and is made again, the same bytes at the same position, when that number has changed: nothing of it was acknowledged.
Every sync of a file or a directory passes through here, as each failure counts for all others.

No twin: a counter and a comparison, which the fault suites of storage test.
"""

import asyncio
import contextlib

from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from shardserver.errors import StorageError

# Seconds. A device that flushes its cache takes some milliseconds at worst; from here on clients notice.
SLOW_S = 0.1


cdef double _now_s() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class SyncFaults:
    """How many syncs have failed, in any file. others(): those of other shards; on_fault(own) is told of ours.

    on_slow(path, seconds, files) is told of each that took slow_s or longer, and of each such group, with the path of
    its first file and how many it has; times, a SyncTimes or None, of all outside groups.
    """

    def __init__(self, own=0, others=None, on_fault=None, on_slow=None, slow_s=SLOW_S):
        self.own, self.others, self.on_fault = own, others, on_fault
        self.on_slow, self.slow_s = on_slow, slow_s

    @property
    def number(self):
        return self.count()

    cdef uint64_t count(self) except? 0xFFFFFFFFFFFFFFFF:
        cdef uint64_t others = self.others() if self.others is not None else 0
        return self.own + others

    cdef int note_time(self, path, double seconds, files) except -1:
        if seconds >= self.slow_s and self.on_slow is not None:
            self.on_slow(path, seconds, files)
        return 0

    def note(self):
        self.own += 1
        if self.on_fault is not None:
            self.on_fault(self.own)


cdef class SyncedWrite:
    """One of them, under way."""

    cdef int start(self) except -1:
        self._before, self._began_s = self._faults.count(), _now_s()
        self._disk.start_synced_write(self._file, self._position, self._buffers, self._on_written, self.ended)
        return 0

    def ended(self, error):
        cdef double seconds = _now_s() - self._began_s
        self._faults.note_time(self._file.path, seconds, 1)
        if self._faults.times is not None:
            self._faults.times.add(seconds)
        if error is not None:
            self._faults.note()
        elif self._faults.count() != self._before:
            self.start()
            return
        self._on_end(error)


cdef int start_write(
    object disk, SyncFaults faults, object file, uint64_t position, object buffers, object on_written, object on_end
) except -1:
    """Write and fdatasync. on_end(error): it is durable, or (a StorageError) its fate is unknown. Without a task."""
    cdef SyncedWrite write = SyncedWrite.__new__(SyncedWrite)
    write._disk, write._faults, write._file, write._position = disk, faults, file, position
    write._buffers, write._on_written, write._on_end = buffers, on_written, on_end
    return write.start()


async def write_synced(disk, SyncFaults faults, file, position, buffers, on_written=None):
    """Write buffers back to back and fdatasync: durable afterwards. Raises StorageError: their fate is unknown."""
    outcome = asyncio.get_running_loop().create_future()

    def ended(error):
        if outcome.cancelled():
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    start_write(disk, faults, file, position, buffers, on_written, ended)
    ended = None  # else it and the scope that it lives in keep each other, and the buffers
    await outcome


async def sync_noted(disk, SyncFaults faults, file, uint64_t since):
    """fdatasync of what has no bytes to write again.

    since: the number of faults before the first change that it covers. Raises StorageError: it failed, or a sync
    failed since then, in any file; what this one holds is unknown.
    """
    await _sync(disk, faults, file)
    if faults.count() != since:
        raise StorageError(f"{file.path}: another sync failed meanwhile, and may have dropped what this one covers")


async def sync_written(disk, SyncFaults faults, file, uint64_t since, writes):
    """fdatasync of writes, [(position, buffers)]: they are durable afterwards.

    since: the number of faults before the first of them. Raises StorageError: their fate is unknown.
    """
    await _sync(disk, faults, file)
    while faults.count() != since:
        since = faults.count()
        for position, buffers in writes:
            await disk.write(file, position, buffers)
        await _sync(disk, faults, file)


async def _sync(disk, SyncFaults faults, file):
    cdef double began_s = _now_s()
    try:
        await disk.sync(file)
    except StorageError:
        faults.note()
        raise
    faults.note_time(file.path, _now_s() - began_s, 1)


async def sync_directory_noted(disk, SyncFaults faults, path, uint64_t since):
    """Make the names in a directory durable. since, and raises: as sync_noted."""
    try:
        await disk.sync_directory(path)
    except StorageError:
        faults.note()
        raise
    if faults.count() != since:
        raise StorageError(f"{path}: another sync failed meanwhile, and may have dropped the names that this one covers")


async def cut_synced(disk, SyncFaults faults, file, uint64_t length):
    """Set the file's length, durably. Raises StorageError as sync_noted does."""
    before = faults.count()
    await disk.truncate(file, length)
    await sync_noted(disk, faults, file, before)


async def write_group_synced(disk, SyncFaults faults, writes):
    """Write into several files and sync each, as durable as by write_synced; an error for each that is not."""
    outcomes = [None] * len(writes)
    left = list(range(len(writes)))
    cdef double began_s, seconds
    while left:
        before, began_s = faults.count(), _now_s()
        results = await disk.write_group([writes[number] for number in left])
        seconds = _now_s() - began_s
        faults.note_time(writes[left[0]][0].path, seconds, len(left))
        for number, error in zip(left, results, strict=True):
            outcomes[number] = error
            if error is not None:
                faults.note()
        left = [number for number in left if outcomes[number] is None] if faults.count() != before else []
    return outcomes


async def do_steps_noted(disk, SyncFaults faults, uint64_t chains, steps):
    """Have steps done (disk.py); gives an error or None of each chain, and the open files of the latter by path.

    What a chain without an error has synced is durable: no sync has failed, in any file, since the first step.
    """
    before, began_s = faults.count(), _now_s()
    errors, has_failed_sync, files = await disk.do_steps(chains, steps)
    faults.note_time(steps[0].path, (_now_s() - began_s) / chains, chains)
    if has_failed_sync:
        faults.note()
    if faults.count() != before:
        doubt = "another sync failed meanwhile, and may have dropped what was made beside it"
        errors = [error or StorageError(f"{steps[0].path}: {doubt}") for error in errors]
        for file in files.values():
            with contextlib.suppress(StorageError):  # nothing of it counts
                await disk.close(file)
        files = {}
    return errors, files
