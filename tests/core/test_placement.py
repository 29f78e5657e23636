"""Where partitions go, why, and which moves a restart or a rebalance asks for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.config import PlacementRule
from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata
from shardserver.core.placement import Move, Placement, describe, moves_event
from tests.core.plans import add_topic, counts_of, make_metadata, shards_of

NAMES = st.sampled_from(["a", "b", "ab", "c"])
GLOBS = st.sampled_from(["a", "a*", "b", "?b", "*"])
STRATEGIES = st.sampled_from(["balanced", "round_robin", "hash"])
SHARDS = st.integers(1, 6)


@st.composite
def placements(draw: st.DrawFn, *, strategies: st.SearchStrategy[str] = STRATEGIES, most_rules: int = 3) -> Placement:
    shards = draw(SHARDS)
    named = st.lists(st.integers(0, shards - 1), min_size=1, max_size=4).map(tuple)
    rules = draw(st.lists(st.builds(PlacementRule, GLOBS, GLOBS, named), max_size=most_rules))
    return Placement(draw(strategies), rules, shards)


@st.composite
def replicas(draw: st.DrawFn, most_shards: int = 8) -> Metadata:
    """Topics on any shards, as other rules and another number of shards have left them."""
    shards = st.lists(st.integers(0, most_shards - 1), max_size=12)
    return make_metadata(draw(st.dictionaries(st.builds("{}/{}".format, NAMES, NAMES), shards, max_size=6)))


def after(metadata: Metadata, moves: list[Move]) -> Metadata:
    changed = copy.deepcopy(metadata)
    ev.apply(changed, moves_event(changed, moves))
    return changed


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


def uids_after(metadata: Metadata, count: int) -> list[int]:
    return list(range(metadata.next_uid, metadata.next_uid + count))


# New partitions


def test_balanced_takes_the_shard_with_the_fewest_then_the_lowest() -> None:
    metadata = make_metadata({"s/t": [0, 0, 2]})
    assert Placement("balanced", shards=4).choose(metadata, "s", "u", uids_after(metadata, 6)) == [1, 3, 1, 2, 3, 0]


def test_round_robin_goes_on_where_the_last_uid_ended() -> None:
    metadata = make_metadata({})
    placement, places = Placement("round_robin", shards=3), []
    for topic, count in (("s/a", 2), ("s/b", 3), ("s/c", 1)):
        shards = placement.choose(metadata, *topic.split("/"), uids_after(metadata, count))
        add_topic(metadata, topic, shards)
        places += shards
    assert places == [1, 2, 0, 1, 2, 0]


def test_hash_gives_a_uid_the_same_shard_whatever_else_lives() -> None:
    placement = Placement("hash", shards=5)
    alone = placement.choose(make_metadata({}), "s", "t", range(1, 101))
    assert placement.choose(make_metadata({"s/t": [0] * 50}), "x", "y", range(1, 101)) == alone
    assert alone[:8] == [3, 2, 4, 1, 2, 0, 0, 2]  # a changed hash would move partitions of a shard that went
    assert all(10 <= alone.count(shard) <= 30 for shard in range(5))


def test_the_first_rule_that_matches_wins() -> None:
    rules = [PlacementRule("orders", "*", (1,)), PlacementRule("o*", "*", (2, 3)), PlacementRule("*", "log?", (3,))]
    placement = Placement("balanced", rules, 4)
    named = {
        ("orders", "log1"): (1,),
        ("other", "log1"): (2, 3),
        ("x", "log1"): (3,),
        ("x", "Log1"): (0, 1, 2, 3),
        ("x", "log"): (0, 1, 2, 3),
    }
    assert {names: placement.candidates(*names) for names in named} == named


@given(placements(), replicas(), NAMES, NAMES, st.integers(0, 40))
def test_new_partitions_go_to_candidates_only_and_the_same_ones_each_time(
    placement: Placement, metadata: Metadata, stream: str, topic: str, count: int
) -> None:
    uids = uids_after(metadata, count)
    chosen = placement.choose(metadata, stream, topic, uids)
    assert len(chosen) == count and set(chosen) <= set(placement.candidates(stream, topic))
    again = Placement(placement.strategy, list(placement.rules), placement.shards)
    assert again.choose(copy.deepcopy(metadata), stream, topic, uids) == chosen


@given(SHARDS, st.lists(st.integers(0, 20), max_size=10))
def test_balanced_without_rules_stays_even_within_one(shards: int, sizes: list[int]) -> None:
    metadata, placement = make_metadata({}), Placement("balanced", shards=shards)
    for number, count in enumerate(sizes):
        chosen = placement.choose(metadata, "s", str(number), uids_after(metadata, count))
        add_topic(metadata, f"s/{number}", chosen)
        assert spread(counts_of(metadata, shards)) <= 1


# A start with other rules or another number of shards


def test_more_shards_move_nothing_by_themselves() -> None:
    metadata = make_metadata({"s/t": [0, 1, 0, 1]})
    for strategy in ("balanced", "round_robin", "hash"):
        assert Placement(strategy, shards=8).misplaced(metadata) == []


def test_what_lived_on_a_shard_that_is_gone_is_spread_over_the_others() -> None:
    metadata = make_metadata({"s/t": [0, 1, 2, 2], "s/u": [0, 3]})
    moves = Placement("balanced", shards=2).misplaced(metadata)
    assert moves == [Move(0, 0, 2, 3, 2, 1), Move(0, 0, 3, 4, 2, 0), Move(0, 1, 1, 6, 3, 1)]


def test_a_rule_moves_what_lives_elsewhere_and_counts_it_as_gone_there() -> None:
    """Shard 1 is emptied by the rule, so what its second topic needs finds it emptier than shard 0."""
    metadata = make_metadata({"s/t": [1, 1], "s/u": [0, 5]})
    moves = Placement("balanced", [PlacementRule("s", "t", (2,))], 3).misplaced(metadata)
    assert moves == [Move(0, 0, 0, 1, 1, 2), Move(0, 0, 1, 2, 1, 2), Move(0, 1, 1, 4, 5, 1)]


@given(placements(), replicas())
def test_after_its_moves_nothing_is_misplaced(placement: Placement, metadata: Metadata) -> None:
    moves = placement.misplaced(metadata)
    assert moves == placement.misplaced(copy.deepcopy(metadata))
    changed = after(metadata, moves)
    assert placement.misplaced(changed) == []
    assert all(one.partition.shard in one.candidates for one in placement.placed(changed))
    moved = {move.uid for move in moves}
    before, now = shards_of(metadata), shards_of(changed)
    assert {uid for uid in before if before[uid] != now[uid]} == moved


# Rebalance


@given(placements(most_rules=0), replicas())
def test_rebalance_without_rules_evens_counts_within_one_by_the_fewest_moves(
    placement: Placement, metadata: Metadata
) -> None:
    metadata = after(metadata, placement.misplaced(metadata))
    before = counts_of(metadata, placement.shards)
    moves = placement.rebalance(metadata)
    counts = counts_of(after(metadata, moves), placement.shards)
    assert spread(counts) <= 1
    low = sum(before) // placement.shards
    high = low + (sum(before) % placement.shards > 0)
    assert len(moves) == max(sum(max(0, one - high) for one in before), sum(max(0, low - one) for one in before))


@given(placements(), replicas())
def test_rebalance_obeys_the_rules_and_never_makes_the_spread_worse(placement: Placement, metadata: Metadata) -> None:
    metadata = after(metadata, placement.misplaced(metadata))
    changed = after(metadata, placement.rebalance(metadata))
    assert spread(counts_of(changed, placement.shards)) <= spread(counts_of(metadata, placement.shards))
    assert placement.misplaced(changed) == [] and placement.rebalance(changed) == []


@given(placements(), replicas())
def test_rebalance_brings_home_what_is_misplaced_too(placement: Placement, metadata: Metadata) -> None:
    moves = placement.rebalance(metadata)
    assert placement.misplaced(after(metadata, moves)) == []
    assert all(move.from_shard != move.to_shard for move in moves)


def sums(metadata: Metadata, loads: dict[int, float], shards: int) -> list[float]:
    found = [0.0] * shards
    for uid, shard in shards_of(metadata).items():
        found[shard] += loads.get(uid, 0.0)
    return found


@given(placements(), replicas(), st.dictionaries(st.integers(1, 40), st.integers(0, 1000)))
def test_rebalance_by_load_lowers_the_peak_or_leaves_it(
    placement: Placement, metadata: Metadata, loads: dict[int, float]
) -> None:
    metadata = after(metadata, placement.misplaced(metadata))
    moves = placement.rebalance(metadata, loads)
    before, now = (sums(one, loads, placement.shards) for one in (metadata, after(metadata, moves)))
    assert max(now) < max(before) if moves and before.count(max(before)) == 1 else max(now) <= max(before)
    assert min(now) >= min(before)
    assert placement.misplaced(after(metadata, moves)) == []
    assert moves == placement.rebalance(metadata, loads)


@given(SHARDS, st.lists(st.integers(0, 5), min_size=60, max_size=90))
def test_many_partitions_of_one_load_come_near_the_mean(shards: int, places: list[int]) -> None:
    metadata = make_metadata({"s/t": [place % shards for place in places]})
    loads = dict.fromkeys(shards_of(metadata), 1.0)
    now = sums(after(metadata, Placement(shards=shards).rebalance(metadata, loads)), loads, shards)
    assert max(now) <= max(1.1 * len(places) / shards, -(-len(places) // shards))


def test_one_hot_partition_is_not_moved_in_circles() -> None:
    metadata = make_metadata({"s/t": [0, 0, 1]})
    moves = Placement(shards=2).rebalance(metadata, {1: 100.0, 2: 1.0, 3: 1.0})
    assert moves == [Move(0, 0, 1, 2, 0, 1)]  # what is cold leaves; the hot one would only carry its heat along


# Reasons


@pytest.mark.parametrize(
    ("strategy", "change", "reason"),
    [
        ("balanced", lambda metadata: None, "balanced"),
        ("round_robin", lambda metadata: None, "round_robin"),
        ("round_robin", lambda metadata: ev.apply(metadata, ev.TopicPurged(0, 0, [2])), "kept: was there before"),
        ("balanced", lambda metadata: move(metadata, shard=2), "moved"),
        ("balanced", lambda metadata: move(metadata, shard=7), "moves at the next start (its shard is gone)"),
        ("balanced", lambda metadata: rename(metadata, "audit"), "rule 2: *s/audit"),
        ("balanced", lambda metadata: (rename(metadata, "audit"), move(metadata, shard=2)), "rule 2: *s/audit, moved"),
        ("hash", lambda metadata: rename(metadata, "x1"), "moves at the next start (rule 1: orders/x?)"),
    ],
)
def test_each_partition_has_its_reason(strategy: str, change: Callable[[Metadata], object], reason: str) -> None:
    metadata = make_metadata({"orders/events": [1]})
    rules = [PlacementRule("orders", "x?", (0,)), PlacementRule("*s", "audit", (1, 2))]
    change(metadata)
    assert [row["reason"] for row in describe(metadata, Placement(strategy, rules, 3))] == [reason]


def move(metadata: Metadata, shard: int) -> None:
    ev.apply(metadata, moves_event(metadata, [Move(0, 0, 0, 1, 1, shard)]))


def rename(metadata: Metadata, name: str) -> None:
    ev.apply(metadata, ev.TopicUpdated(0, 0, name, {}))


def test_the_description_is_sorted_by_names_and_numbers() -> None:
    metadata = make_metadata({"b/b": [0], "b/a": [1, 0], "a/c": [1]})
    rows = describe(metadata, Placement(shards=2))
    assert [(row["stream"], row["topic"], row["partition"]) for row in rows] == [
        ("a", "c", 0),
        ("b", "a", 0),
        ("b", "a", 1),
        ("b", "b", 0),
    ]
    assert rows[1] == {
        "stream": "b", "topic": "a", "partition": 0, "uid": 2, "shard": 1, "term": 1, "reason": "balanced"
    }  # fmt: skip
