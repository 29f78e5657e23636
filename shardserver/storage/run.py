"""One run into a segment, as buffers for one write. Format: docs/formats/segment.md, "Runs".

Batches that lie in the arena and are large go to the disk from there, each padded in its own block; the others are
gathered in staging, back to back. Nothing of it changes until the write is done: batches are stamped before, their
blocks are held by the buffers, and staging is given back by who wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.memory.arena import padded
from shardserver.storage.journal_format import BLOCK_BYTES
from shardserver.storage.tail import TailEntry

LEAST_STAGING_BYTES, KEPT_STAGING_BYTES = 64 * 1024, 16 << 20


class StagingPool:
    """Staging that was touched once and is used again: a fresh page costs more than the copy into it."""

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}
        self.kept_bytes = 0

    def take(self, size: int) -> memoryview:
        """At least size bytes, page-aligned, with whatever they held before."""
        room = max(LEAST_STAGING_BYTES, 1 << (size - 1).bit_length())
        free = self._free.get(room)
        if not free:
            return aligned_buffer(room)
        self.kept_bytes -= room
        return free.pop()

    def give_back(self, staging: memoryview) -> None:
        """What `take` gave, when no write looks at it any more."""
        if self.kept_bytes + len(staging) <= KEPT_STAGING_BYTES:
            self.kept_bytes += len(staging)
            self._free.setdefault(len(staging), []).append(staging)


@dataclass(slots=True)
class Run:
    """buffers: to be written back to back. places: of the batches, in bytes from the start of the run."""

    buffers: list[memoryview] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    size_bytes: int = 0
    _staging: list[memoryview] = field(default_factory=list)

    def add_whole(self, batch: memoryview) -> None:
        self.places.append(self.size_bytes)
        self.buffers.append(batch)
        self.size_bytes += len(batch)

    def add_gathered(self, entries: list[TailEntry], pool: StagingPool) -> None:
        """Copy them back to back, and zeros behind them up to a whole block."""
        total = sum(len(entry.data) for entry in entries)
        staging, position, end = pool.take(align_up(total, BLOCK_BYTES)), 0, align_up(total, BLOCK_BYTES)
        for entry in entries:
            staging[position : position + len(entry.data)] = entry.data
            self.places.append(self.size_bytes + position)
            position += len(entry.data)
        staging[position:end] = bytes(end - position)
        self._staging.append(staging)
        self.buffers.append(staging[:end])
        self.size_bytes += end

    def give_back(self, pool: StagingPool) -> None:
        """Once the write has ended, well or not; after a cancellation it has not."""
        for staging in self._staging:
            pool.give_back(staging)


def build_run(entries: Iterable[TailEntry], pool: StagingPool, whole_bytes: int) -> Run:
    """The run that holds the entries, in their order. whole_bytes: from so many on a batch is not gathered."""
    run, gathered = Run(), list[TailEntry]()
    for entry in entries:
        whole = padded(entry.data) if len(entry.data) >= whole_bytes else None
        if whole is None:
            gathered.append(entry)
            continue
        if gathered:
            run.add_gathered(gathered, pool)
            gathered = []
        run.add_whole(whole)
    if gathered:
        run.add_gathered(gathered, pool)
    return run
