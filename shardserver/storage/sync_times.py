"""How long synced writes take: counts by duration, in buckets at most an eighth wide."""

from __future__ import annotations

# Eight buckets for each power of two, as in HDR histograms: 12.5 % is far below what a device varies by.
_STEPS = 8


class SyncTimes:
    """Owned by one shard. Counts only grow: whoever asks twice has those between."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def note(self, seconds: float) -> None:
        """Once a synced write, whether it failed or not."""
        bucket = _bucket_of(int(seconds * 1e6))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def counts(self) -> list[tuple[int, int]]:
        """[(microseconds, syncs that took at most so long and longer than the one before)], ascending."""
        return [(_most_us(bucket), count) for bucket, count in sorted(self._counts.items())]


def _bucket_of(us: int) -> int:
    """Below _STEPS each microsecond has its own."""
    shift = max(0, us.bit_length() - 4)
    return shift * _STEPS + (us >> shift)


def _most_us(bucket: int) -> int:
    if bucket < 2 * _STEPS:
        return bucket
    shift = bucket // _STEPS - 1
    return ((bucket - shift * _STEPS + 1) << shift) - 1
