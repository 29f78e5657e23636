"""Latencies as an HDR histogram: counted in C (hdr.pxd), merged and read through the hdrhistogram library."""

from __future__ import annotations

from array import array

from hdrh.histogram import HdrHistogram

from shardserver.bench.load import COUNTS_LENGTH

LOWEST_NS, HIGHEST_NS, DIGITS = 1, 3_600_000_000_000, 3
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def empty_counts() -> array[int]:
    """Counts for run_load to add to."""
    return array("Q", bytes(8 * COUNTS_LENGTH))


class Latencies:
    """A histogram in ns: values are true to 3 digits, above one hour they count as one hour."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
        assert self._histogram.counts_len == COUNTS_LENGTH

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    def add_counts(self, counts: memoryview | array[int]) -> None:
        """Take in what one load process counted: COUNTS_LENGTH of them."""
        for index, count in enumerate(counts):
            if count:
                self._histogram.record_value(self._histogram.get_value_from_index(index), count)

    def merge(self, other: Latencies) -> None:
        self._histogram.add(other._histogram)

    def percentile_ns(self, share: float) -> int | None:
        """share: percent. None: nothing was recorded, or too little to tell this one from the largest."""
        if self.count * round(1000 - 10 * share) < 1000:
            return None
        return int(self._histogram.get_value_at_percentile(share))

    def max_ns(self) -> int | None:
        return int(self._histogram.get_max_value()) if self.count else None

    def summary_us(self) -> dict[str, float | None]:
        """p50, p90, p99, p99.9 and max."""
        found = {name: self.percentile_ns(share) for name, share in PERCENTILES.items()} | {"max": self.max_ns()}
        return {name: None if value is None else value / 1e3 for name, value in found.items()}
