"""Percentiles by nearest rank: each is a latency that was measured, never a value between two."""

from __future__ import annotations

from collections.abc import Sequence

# Hundredths of a percent, so that ranks are computed in whole numbers.
PERCENTILES = {"p50": 5_000, "p90": 9_000, "p99": 9_900, "p99.9": 9_990, "p99.99": 9_999}
WHOLE = 10_000


def nearest_rank(ordered: Sequence[int], hundredths: int) -> int:
    """The smallest value that at least hundredths/100 percent of the values do not exceed.

    Args:
        ordered: rising, not empty.
        hundredths: 1..10 000.
    """
    return ordered[-(-hundredths * len(ordered) // WHOLE) - 1]


def summarize(ordered: Sequence[int]) -> dict[str, int | None]:
    """Percentiles and the largest, in the values' unit.

    None: too few values for this one, it would only repeat the largest.
    """
    count = len(ordered)
    known = {name: count * (WHOLE - share) >= WHOLE for name, share in PERCENTILES.items()}
    found: dict[str, int | None] = {
        name: nearest_rank(ordered, share) if known[name] else None for name, share in PERCENTILES.items()
    }
    return found | {"max": ordered[-1] if count else None}
