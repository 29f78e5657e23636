"""A write that counts only if no sync of the server failed meanwhile (storage rule 20).

A failed sync of any file may have dropped what other files had not synced yet, those of other shards on the same disk
included, and their own later syncs succeed all the same. So each write remembers the number of failures at its start,
and is made again, the same bytes at the same position, when that number has changed: nothing of it was acknowledged.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from shardserver.errors import StorageError
from shardserver.storage.disk import Disk, File, GroupWrite

# A device that flushes its cache takes some milliseconds at worst; from here on clients notice.
SLOW_S = 0.1
Ended = Callable[[StorageError | None], None]


def _none() -> int:
    return 0


def _ignore(count: int) -> None:
    """There is nobody to tell."""


def _ignore_slow(path: str, seconds: float) -> None:
    """There is nobody to tell."""


@dataclass(slots=True)
class SyncFaults:
    """How many synced writes have failed, in any file. others: those of other shards; on_fault is told of ours.

    on_slow: told of each synced write that took SLOW_S or longer, with its path and seconds.
    """

    own: int = 0
    others: Callable[[], int] = _none
    on_fault: Callable[[int], None] = _ignore
    on_slow: Callable[[str, float], None] = _ignore_slow

    @property
    def number(self) -> int:
        return self.own + self.others()

    def note(self) -> None:
        self.own += 1
        self.on_fault(self.own)


def start_synced_write(
    disk: Disk,
    faults: SyncFaults,
    file: File,
    position: int,
    buffers: Sequence[memoryview],
    on_written: Callable[[], None] | None,
    on_end: Ended,
) -> None:
    """Write and fdatasync. on_end: it is durable, or (StorageError) its fate is unknown. Without a task."""
    before, began = faults.number, monotonic()

    def ended(written: Future[None]) -> None:
        error, seconds = written.exception(), monotonic() - began
        if seconds >= SLOW_S:
            faults.on_slow(file.path, seconds)
        if error is not None:
            faults.note()
            error = error if isinstance(error, StorageError) else StorageError(f"a write failed in its disk: {error!r}")
        elif faults.number != before:
            start_synced_write(disk, faults, file, position, buffers, on_written, on_end)
            return
        on_end(error)

    disk.write(file, position, buffers, sync=True, on_written=on_written).add_done_callback(ended)


async def write_synced(
    disk: Disk,
    faults: SyncFaults,
    file: File,
    position: int,
    buffers: Sequence[memoryview],
    on_written: Callable[[], None] | None = None,
) -> None:
    """Write buffers back to back and fdatasync: durable afterwards. Raises StorageError: their fate is unknown."""
    outcome: Future[None] = asyncio.get_running_loop().create_future()

    def ended(error: StorageError | None) -> None:
        if outcome.cancelled():
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    start_synced_write(disk, faults, file, position, buffers, on_written, ended)
    await outcome


async def write_group_synced(disk: Disk, faults: SyncFaults, writes: Sequence[GroupWrite]) -> list[StorageError | None]:
    """Write into several files and sync each, as durable as by write_synced; an error for each that is not."""
    outcomes: list[StorageError | None] = [None] * len(writes)
    left = list(range(len(writes)))
    while left:
        before = faults.number
        results = await disk.write_group([writes[number] for number in left])
        for number, error in zip(left, results, strict=True):
            outcomes[number] = error
            if error is not None:
                faults.note()
        left = [number for number in left if outcomes[number] is None] if faults.number != before else []
    return outcomes
