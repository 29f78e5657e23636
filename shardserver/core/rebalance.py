"""Which partitions change their shard so that the shards are even. Both ways are greedy and deterministic.

Only direct moves are looked for. Where rules forbid every direct one, a chain over a third shard could still even
out one partition; it is not sought.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# The greatest load may be this part of the mean: below it a move costs more than it gains.
LOAD_SLACK = 1.1


class Movable(NamedTuple):
    """A partition and the shards that it may live on."""

    uid: int
    candidates: tuple[int, ...]


# What lives on each shard, by its number.
Holdings = list[list[Movable]]


def even_counts(holdings: Holdings) -> dict[int, int]:
    """uid -> new shard, changing holdings accordingly. Without rules: the fewest moves to counts within one.

    Each step goes from the fullest shard to the emptiest one, as far as rules allow, so it takes one off what is too
    much or too little; none is wasted.
    """
    moved: dict[int, int] = {}
    while (step := _next_step(holdings)) is not None:
        source, position, destination = step
        one = holdings[source].pop(position)
        holdings[destination].append(one)
        moved[one.uid] = destination
    return moved


def _next_step(holdings: Holdings) -> tuple[int, int, int] | None:
    """(source, position there, destination), or None: no move makes two shards more even."""
    by_count = sorted(range(len(holdings)), key=lambda shard: len(holdings[shard]))
    for source in reversed(by_count):
        for destination in by_count:
            if len(holdings[source]) - len(holdings[destination]) < 2:
                break
            position = _newest_for(holdings[source], destination)
            if position is not None:
                return source, position, destination
    return None


def _newest_for(held: list[Movable], destination: int) -> int | None:
    for position in range(len(held) - 1, -1, -1):
        if destination in held[position].candidates:
            return position
    return None


def even_loads(holdings: Holdings, loads: Mapping[int, float]) -> dict[int, int]:
    """uid -> new shard, changing holdings accordingly, until the greatest load is near the mean or no move lowers it.

    Each partition moves once at most, so there is an end whatever rounding does to the sums.
    """
    totals = [sum(loads.get(one.uid, 0.0) for one in held) for held in holdings]
    limit = LOAD_SLACK * sum(totals) / len(totals)
    moved: dict[int, int] = {}
    while max(totals) > limit:
        source = totals.index(max(totals))
        best = _best_move(holdings[source], source, totals, loads, moved)
        if best is None:
            break
        one, destination = best
        holdings[source].remove(one)
        holdings[destination].append(one)
        totals[source] -= loads[one.uid]
        totals[destination] += loads[one.uid]
        moved[one.uid] = destination
    return moved


def _best_move(
    held: list[Movable], source: int, totals: list[float], loads: Mapping[int, float], moved: Mapping[int, int]
) -> tuple[Movable, int] | None:
    """What leaves the lower peak of the two shards; None when nothing lowers it."""
    best, lowest_peak = None, totals[source]
    for one in held:
        load = loads.get(one.uid, 0.0)
        others = [shard for shard in one.candidates if shard != source]
        if load <= 0 or not others or one.uid in moved:
            continue
        destination = min(others, key=totals.__getitem__)
        peak = max(totals[source] - load, totals[destination] + load)
        if peak < lowest_peak:
            best, lowest_peak = (one, destination), peak
    return best
