"""Which partitions keep which files of the journal: each pins the oldest one with bytes of it that no segment holds."""

from __future__ import annotations

from operator import attrgetter

from shardserver.storage.partition_log import PartitionLog


class JournalPins:
    """Of one shard. pinned: partitions by the sequence of their file, kept here and read by ShardTurn."""

    def __init__(self, pinned: dict[int, dict[PartitionLog, None]]) -> None:
        self._pinned = pinned

    def pin(self, partition: PartitionLog, sequence: int) -> None:
        partition.pinned_sequence = sequence
        self._pinned.setdefault(sequence, {})[partition] = None

    def unpin(self, partition: PartitionLog) -> None:
        holders = self._pinned.get(partition.pinned_sequence)
        if holders is not None:
            holders.pop(partition, None)
            if not holders:
                del self._pinned[partition.pinned_sequence]
        partition.pinned_sequence = 0

    def all(self) -> list[PartitionLog]:
        return [one for members in self._pinned.values() for one in members]

    def oldest_share(self) -> float:
        """Of all of them, those of the oldest file."""
        total = sum(map(len, self._pinned.values()))
        return len(self._pinned[min(self._pinned)]) / total if total else 1.0

    def through(self, sequence: int) -> list[PartitionLog]:
        """Those of the file of that sequence and of older ones.

        In the order in which they were made: inodes of neighbours are in the same block, which is then written once.
        """
        members = [one for held, members in self._pinned.items() if held <= sequence for one in members]
        return sorted(members, key=attrgetter("uid"))
