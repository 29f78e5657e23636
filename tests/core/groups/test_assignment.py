"""Partitions dealt out: everyone has a share, and no more change hands than must."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shardserver.core.groups.assignment import Owners, assign

MEMBERS = st.lists(st.integers(1, 12), unique=True, max_size=8)
COUNTS = st.integers(0, 20)


def moved(before: Owners, after: Owners, members: list[int]) -> int:
    """Partitions taken from a member that is still there."""
    pairs = zip(before, after, strict=False)
    return sum(old != new for old, new in pairs if old in members)


def fewest_moves(before: Owners, members: list[int], partitions: int) -> int:
    """What each member has above the largest share that it may keep: the larger shares are as many as the rest."""
    least, larger = divmod(partitions, len(members))
    held = Counter(owner for owner in before[:partitions] if owner in members)
    keep_larger = sorted((count - least for count in held.values() if count > least), reverse=True)
    return sum(keep_larger) - sum(1 for place, _ in enumerate(keep_larger) if place < larger)


@given(MEMBERS, COUNTS, st.lists(st.none() | st.integers(1, 15), max_size=25))
def test_shares_differ_by_one_at_most_and_as_few_move_as_can(members: list[int], count: int, before: Owners) -> None:
    owners = assign(members, count, before)
    assert len(owners) == count
    if not members:
        assert owners == [None] * count
        return
    shares = Counter(owners)
    assert set(shares) <= set(members)
    assert max((shares[one] for one in members), default=0) - min(shares[one] for one in members) <= 1
    assert moved(before[:count], owners, members) == fewest_moves(before, members, count)


def test_the_first_member_gets_all_and_the_second_half() -> None:
    alone = assign([7], 4, [None] * 4)
    assert alone == [7] * 4
    both = assign([7, 8], 4, alone)
    assert both == [7, 7, 8, 8]
    assert assign([8], 4, both) == [8] * 4
    assert assign([7, 8], 5, both)[:4] == both


def test_members_beyond_the_partitions_have_none() -> None:
    assert assign([1, 2, 3], 2, [None, None]) == [1, 2]
    assert assign([1, 2, 3], 2, [3, 1]) == [3, 1]
