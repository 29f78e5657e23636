"""Which partitions change their shard so that the shards are even. Both ways are greedy and deterministic.

Only direct moves are looked for. Where rules forbid every direct one, a chain over a third shard could still even
out one partition; it is not sought.
"""

from __future__ import annotations

from bisect import bisect_left
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


# (load, uid) of those that may still move, ascending, by the shards that they may live on.
Groups = dict[tuple[int, ...], list[tuple[float, int]]]


def even_loads(holdings: Holdings, loads: Mapping[int, float]) -> dict[int, int]:
    """uid -> new shard, until the greatest load is near the mean or no move lowers it.

    Each partition moves once at most, so there is an end whatever rounding does to the sums.
    """
    unmoved = [_groups(held, loads) for held in holdings]
    totals = [sum(load for group in groups.values() for load, _ in group) for groups in unmoved]
    limit = LOAD_SLACK * sum(totals) / len(totals)
    moved: dict[int, int] = {}
    while max(totals) > limit:
        source = totals.index(max(totals))
        best = _best_move(unmoved[source], source, totals)
        if best is None:
            break
        candidates, position, destination = best
        load, uid = unmoved[source][candidates].pop(position)
        totals[source] -= load
        totals[destination] += load
        moved[uid] = destination
    return moved


def _groups(held: list[Movable], loads: Mapping[int, float]) -> Groups:
    """Without those that have no load: they weigh nothing wherever they are."""
    groups: Groups = {}
    for one in held:
        load = loads.get(one.uid, 0.0)
        if load > 0:
            groups.setdefault(one.candidates, []).append((load, one.uid))
    for group in groups.values():
        group.sort()
    return groups


def _best_move(groups: Groups, source: int, totals: list[float]) -> tuple[tuple[int, ...], int, int] | None:
    """(candidates, position, destination) with the lowest peak of the two shards; None: nothing lowers it.

    The peak is lowest for the load nearest to half of the difference, so two of a group are looked at, not all:
    with 10,000 partitions that is the difference between milliseconds and seconds.
    """
    best, lowest_peak = None, totals[source]
    for candidates, group in groups.items():
        others = [shard for shard in candidates if shard != source]
        if not group or not others:
            continue
        destination = min(others, key=totals.__getitem__)
        nearest = bisect_left(group, ((totals[source] - totals[destination]) / 2, 0))
        for position in range(max(0, nearest - 1), min(nearest + 1, len(group))):
            load = group[position][0]
            peak = max(totals[source] - load, totals[destination] + load)
            if peak < lowest_peak:
                best, lowest_peak = (candidates, position, destination), peak
    return best
