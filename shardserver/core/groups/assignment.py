"""Which member has which partition: balanced within one, and as few partitions change hands as that allows."""

from __future__ import annotations

from collections.abc import Sequence

# Of each partition by id: the member that has it; None: nobody.
Owners = list[int | None]


def assign(members: Sequence[int], partitions: int, before: Owners) -> Owners:
    """Owners of partitions 0..partitions-1. members: their keys, in the order in which they came.

    Each member has floor or ceil of partitions/members. Who has more than its share keeps the lowest ids; the larger
    shares go to those that have most already, so that no partition moves that need not.
    """
    owners: Owners = [None] * partitions
    if not members:
        return owners
    held: dict[int, list[int]] = {member: [] for member in members}
    for partition, owner in enumerate(before[:partitions]):
        if owner in held:
            held[owner].append(partition)
    shares = _shares(members, partitions, held)
    for member, partitions_of in held.items():
        for partition in partitions_of[: shares[member]]:
            owners[partition] = member
    _deal(owners, members, shares, {member: min(len(held[member]), shares[member]) for member in members})
    return owners


def _shares(members: Sequence[int], partitions: int, held: dict[int, list[int]]) -> dict[int, int]:
    least, larger = divmod(partitions, len(members))
    by_held = sorted(members, key=lambda member: -len(held[member]))  # stable: older members first
    return {member: least + (place < larger) for place, member in enumerate(by_held)}


def _deal(owners: Owners, members: Sequence[int], shares: dict[int, int], have: dict[int, int]) -> None:
    free = [partition for partition, owner in enumerate(owners) if owner is None]
    for member in members:
        while have[member] < shares[member]:
            owners[free.pop(0)] = member
            have[member] += 1
