"""One run into a segment, as buffers for one write. Built by gather.pyx. Format: docs/formats/segment.md, "Runs".

Nothing of it changes until the write is done: batches are stamped before, their blocks are held by the buffers, and
staging is given back by who wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shardserver.memory.aligned import aligned_buffer

LEAST_STAGING_BYTES, KEPT_STAGING_BYTES = 64 * 1024, 16 << 20


class StagingPool:
    """Staging that was touched once and is used again: a fresh page costs more than the copy into it."""

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}
        self.kept_bytes = 0

    def take(self, size: int) -> memoryview:
        """At least size bytes, page-aligned, with whatever they held before."""
        room = max(LEAST_STAGING_BYTES, 1 << (size - 1).bit_length())
        free = self._free[room] = self._free.pop(room, [])  # last in order now
        if not free:
            return aligned_buffer(room)
        self.kept_bytes -= room
        return free.pop()

    def give_back(self, staging: memoryview) -> None:
        """What `take` gave, when no write looks at it any more."""
        self._free.setdefault(len(staging), []).append(staging)
        self.kept_bytes += len(staging)
        while self.kept_bytes > KEPT_STAGING_BYTES:
            room, free = next(iter(self._free.items()))  # the size that was asked for longest ago
            if free:
                free.pop()
                self.kept_bytes -= room
            else:
                del self._free[room]


@dataclass(slots=True)
class Run:
    """buffers: to be written back to back, size_bytes in all. end_offset: behind its last message.

    marks: (base offset, place, timestamp) of the batches that a sparse index is to name; place: in bytes from the run's
    start.
    """

    buffers: list[memoryview] = field(default_factory=list)
    marks: list[tuple[int, int, int]] = field(default_factory=list)
    size_bytes: int = 0
    end_offset: int = 0
    staging: list[memoryview] = field(default_factory=list)

    def give_back(self, pool: StagingPool) -> None:
        """Once the write has ended, well or not; after a cancellation it has not."""
        for staging in self.staging:
            pool.give_back(staging)
