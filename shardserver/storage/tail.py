"""What a partition keeps in memory: everything that is not in its segments yet, and as much more as the budget lets."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(slots=True)
class TailEntry:
    """One stamped batch. sequence: the journal file that holds it, 0 while none does."""

    base_offset: int
    count: int
    timestamp: int
    data: bytearray
    sequence: int = 0

    @property
    def end_offset(self) -> int:
        return self.base_offset + self.count


class Tail:
    """Contiguous batches in order of their offsets."""

    def __init__(self) -> None:
        self._entries: list[TailEntry] = []
        self._bases: list[int] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first_offset(self) -> int | None:
        return self._bases[0] if self._bases else None

    def append(self, entry: TailEntry) -> None:
        self._entries.append(entry)
        self._bases.append(entry.base_offset)
        self.bytes += len(entry.data)

    def from_offset(self, offset: int) -> list[TailEntry]:
        """Entries from the one that holds `offset` on."""
        place = max(0, bisect_right(self._bases, offset) - 1)
        return [entry for entry in self._entries[place:] if entry.end_offset > offset]

    def iterate_from(self, offset: int, limit: int) -> list[TailEntry]:
        """At most `limit` entries from the one that holds `offset`."""
        place = max(0, bisect_right(self._bases, offset) - 1)
        return self._entries[place : place + limit]

    def cut_from(self, offset: int) -> None:
        """Forget entries whose run failed: they were never acknowledged."""
        while self._entries and self._entries[-1].base_offset >= offset:
            self.bytes -= len(self._entries.pop().data)
            self._bases.pop()

    def evict_oldest(self, limit_offset: int) -> int:
        """Drop the oldest entry if it ends at or before limit_offset (it is in a segment); gives the bytes freed."""
        if not self._entries or self._entries[0].end_offset > limit_offset:
            return 0
        freed = len(self._entries[0].data)
        del self._entries[0], self._bases[0]
        self.bytes -= freed
        return freed
