"""Our counting in C numbers its buckets as the hdrhistogram library does, and percentiles come out of the library."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from shardserver.bench.latencies import DIGITS, HIGHEST_NS, LOWEST_NS, Latencies, empty_counts
from shardserver.bench.load import COUNTS_LENGTH, latency_index

LIBRARY = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
EDGES = [0, 1, 2047, 2048, 2049, 4095, 4096, *(1 << power for power in range(42)), HIGHEST_NS - 1, HIGHEST_NS]


def of(values: list[int]) -> Latencies:
    counts = empty_counts()
    for value in values:
        counts[latency_index(value)] += 1
    made = Latencies()
    made.add_counts(counts)
    return made


def test_each_edge_falls_into_the_librarys_bucket() -> None:
    for value in EDGES:
        assert latency_index(min(value, HIGHEST_NS)) == LIBRARY.get_counts_array_index(min(value, HIGHEST_NS))


@given(st.integers(0, HIGHEST_NS))
def test_every_value_falls_into_the_librarys_bucket(value: int) -> None:
    index = latency_index(value)
    assert index == LIBRARY.get_counts_array_index(value) < COUNTS_LENGTH


@given(st.integers(HIGHEST_NS, 2**64 - 1))
def test_a_value_above_an_hour_counts_as_an_hour(value: int) -> None:
    assert latency_index(value) == latency_index(HIGHEST_NS)


@given(st.lists(st.integers(1, HIGHEST_NS), min_size=1, max_size=300), st.sampled_from([50.0, 90.0, 99.0]))
def test_a_percentile_is_the_value_of_its_rank_to_three_digits(values: list[int], share: float) -> None:
    found = of(values).percentile_ns(share)
    if found is None:
        assert len(values) * (100 - share) < 100
        return
    due = sorted(values)[max(1, int(share * len(values) / 100 + 0.5)) - 1]
    assert due <= found <= due * 1.001 + 1


def test_a_percentile_that_only_repeats_the_largest_is_left_out() -> None:
    assert of(list(range(1, 1000))).percentile_ns(99.9) is None
    assert of(list(range(1, 1001))).percentile_ns(99.9) == 999
    assert Latencies().max_ns() is None


@given(st.lists(st.integers(1, HIGHEST_NS)), st.lists(st.integers(1, HIGHEST_NS)))
def test_merged_histograms_are_that_of_all_values(left: list[int], right: list[int]) -> None:
    merged = of(left)
    merged.merge(of(right))
    assert merged.summary_us() == of(left + right).summary_us()
    assert merged.count == len(left) + len(right)
