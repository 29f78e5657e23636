"""What a partition keeps in memory: everything that is not in its segments yet, and as much more as the budget lets.

The readable form of tail.pyx.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from shardserver.memory.buffers import WritableBuffer


@dataclass(slots=True)
class TailEntry:
    """One stamped batch. sequence: the journal file that holds it, 0 while none does."""

    base_offset: int
    count: int
    timestamp: int
    data: WritableBuffer
    sequence: int = 0

    @property
    def end_offset(self) -> int:
        return self.base_offset + self.count


class TailTotal:
    """Bytes of all tails of one shard."""

    def __init__(self) -> None:
        self.bytes = 0


class Tail:
    """Contiguous batches in order of their offsets.

    Evicted ones leave a gap at the front, which is closed when it is half of them: so dropping the oldest of half a
    million batches moves none of the others.
    """

    def __init__(self, total: TailTotal) -> None:
        self._total: TailTotal | None = total
        self._entries: list[TailEntry] = []
        self._bases: list[int] = []
        self._evicted = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries) - self._evicted

    @property
    def first_offset(self) -> int | None:
        return self._bases[self._evicted] if len(self) else None

    def append(self, entry: TailEntry) -> None:
        self._entries.append(entry)
        self._bases.append(entry.base_offset)
        self._count(len(entry.data))

    def _count(self, added: int) -> None:
        self.bytes += added
        if self._total is not None:
            self._total.bytes += added

    def leave_total(self) -> None:
        """Count in the shard's total no more."""
        if self._total is not None:
            self._total.bytes -= self.bytes
            self._total = None

    def from_offset(self, offset: int) -> Iterator[TailEntry]:
        """Entries from the one that holds `offset` on, or from the first. To be used up before the tail changes."""
        place = max(self._evicted, bisect_right(self._bases, offset, self._evicted) - 1)
        if place < len(self._entries) and self._entries[place].end_offset <= offset:
            place += 1
        return map(self._entries.__getitem__, range(place, len(self._entries)))

    def at(self, offset: int) -> TailEntry | None:
        """The entry that holds `offset`, or the first; None when there is none."""
        return next(self.from_offset(offset), None)

    def bytes_from(self, offset: int) -> int:
        """Of all entries that from_offset gives."""
        return sum(len(entry.data) for entry in self.from_offset(offset))

    def cut_from(self, offset: int) -> None:
        """Forget entries whose run failed: they were never acknowledged."""
        while len(self) and self._entries[-1].base_offset >= offset:
            self._count(-len(self._entries.pop().data))
            self._bases.pop()

    def evict_oldest(self, limit_offset: int) -> int:
        """Drop the oldest entry if it ends at or before limit_offset (it is in a segment); gives the bytes freed."""
        if not len(self) or self._entries[self._evicted].end_offset > limit_offset:
            return 0
        freed = len(self._entries[self._evicted].data)
        self._entries[self._evicted] = _GONE
        self._evicted += 1
        if self._evicted * 2 > len(self._entries):
            del self._entries[: self._evicted], self._bases[: self._evicted]
            self._evicted = 0
        self._count(-freed)
        return freed


_GONE = TailEntry(0, 0, 0, bytearray())
