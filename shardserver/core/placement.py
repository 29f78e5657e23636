"""Where partitions live: strategies, rules, and the moves that a change of either asks for.

All of it is a function of the metadata and the configuration. There is no state beside them, so that every process and
every start comes to the same answer. Keys are uids: they are never given out again, ids on the wire are.

A rule narrows the shards to choose from; the strategy chooses among them:

- balanced: the shard with the fewest live partitions, of several the lowest;
- round_robin: by the uid, which counts the partitions ever made;
- hash: by XXH3-64 (seed 0) of the uid, 8 bytes, little-endian.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import xxhash

from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata, Partition
from shardserver.core.rebalance import Movable, even_counts, even_loads


class Rule(Protocol):
    """Topics whose stream and topic match both globs live on these shards only."""

    @property
    def stream(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def shards(self) -> Sequence[int]: ...


class Move(NamedTuple):
    """One partition from one shard to another."""

    stream_id: int
    topic_id: int
    partition_id: int
    uid: int
    from_shard: int
    to_shard: int


class Placed(NamedTuple):
    """A live partition and the shards that it may live on, ascending."""

    stream_id: int
    topic_id: int
    partition: Partition
    candidates: tuple[int, ...]

    def move(self, shard: int) -> Move:
        one = self.partition
        return Move(self.stream_id, self.topic_id, one.id, one.uid, one.shard, shard)


@dataclass(slots=True)
class Placement:
    """A strategy (balanced, round_robin, hash), rules of which the first that matches wins, and the number of shards.

    The rules name shards below that number only (config.check_rules). A reload sets strategy and rules, for what is
    placed from then on; partitions that are there move at the next start.
    """

    strategy: str = "balanced"
    rules: Sequence[Rule] = ()
    shards: int = 1

    def choose(self, metadata: Metadata, stream: str, topic: str, uids: Iterable[int]) -> list[int]:
        """The shards of new partitions with these uids, in their order. stream, topic: names."""
        candidates = self.candidates(stream, topic)
        counts = Counter(metadata.shard_counts)
        return [self._take(counts, candidates, uid) for uid in uids]

    def candidates(self, stream: str, topic: str) -> tuple[int, ...]:
        """The shards that partitions of this topic may live on, ascending."""
        number = self._rule_number(stream, topic)
        return tuple(range(self.shards)) if number is None else tuple(sorted(set(self.rules[number].shards)))

    def _rule_number(self, stream: str, topic: str) -> int | None:
        for number, rule in enumerate(self.rules):
            if fnmatchcase(stream, rule.stream) and fnmatchcase(topic, rule.topic):
                return number
        return None

    def _take(self, counts: Counter[int], candidates: Sequence[int], uid: int) -> int:
        """Choose one and count it. `min` gives the first of several, which is the lowest."""
        if self.strategy == "balanced":
            shard = min(candidates, key=counts.__getitem__)
        else:
            shard = self._by_uid(candidates, uid)
        counts[shard] += 1
        return shard

    def _by_uid(self, candidates: Sequence[int], uid: int) -> int:
        number = uid if self.strategy == "round_robin" else xxhash.xxh3_64_intdigest(uid.to_bytes(8, "little"))
        return candidates[number % len(candidates)]

    def placed(self, metadata: Metadata) -> list[Placed]:
        """All live partitions by uid, so that plans do not hang on the order of dictionaries."""
        found = []
        for stream in metadata.streams.values():
            for topic in stream.topics.values():
                candidates = self.candidates(stream.name, topic.name)
                found += [Placed(stream.id, topic.id, one, candidates) for one in topic.partitions]
        return sorted(found, key=lambda one: one.partition.uid)

    def misplaced(self, metadata: Metadata) -> list[Move]:
        """The moves of those whose shard is gone, or is none of their rule's. More shards alone move nothing."""
        return self._homes(metadata, self.placed(metadata))

    def _homes(self, metadata: Metadata, placed: list[Placed]) -> list[Move]:
        lost = [one for one in placed if one.partition.shard not in one.candidates]
        counts = Counter(metadata.shard_counts)
        counts.subtract(one.partition.shard for one in lost)
        return [one.move(self._take(counts, one.candidates, one.partition.uid)) for one in lost]

    def rebalance(self, metadata: Metadata, loads: Mapping[int, float] | None = None) -> list[Move]:
        """The moves of `misplaced`, and those that make the shards even, as far as the rules allow.

        Args:
            loads: of each uid, in any unit; one that is missing has none. Then the greatest sum of a shard is
                brought below LOAD_SLACK of the mean. None: the counts become equal within one.
        """
        placed = self.placed(metadata)
        planned = {move.uid: move.to_shard for move in self._homes(metadata, placed)}
        holdings: list[list[Movable]] = [[] for _ in range(self.shards)]
        for one in placed:
            uid, shard = one.partition.uid, one.partition.shard
            holdings[planned.get(uid, shard)].append(Movable(uid, one.candidates))
        planned |= even_counts(holdings) if loads is None else even_loads(holdings, loads)
        homes = [(one, planned.get(one.partition.uid, one.partition.shard)) for one in placed]
        return [one.move(shard) for one, shard in homes if shard != one.partition.shard]

    def reason(self, stream: str, topic: str, partition: Partition) -> str:
        """Why the partition is where it is, in a few words. stream, topic: names."""
        number = self._rule_number(stream, topic)
        candidates = self.candidates(stream, topic)
        named = "" if number is None else f"rule {number + 1}: {self.rules[number].stream}/{self.rules[number].topic}"
        if partition.shard not in candidates:
            return f"moves at the next start ({named or 'its shard is gone'})"
        if partition.term > 1:
            return f"{named}, moved" if named else "moved"
        if named:
            return named
        if self.strategy != "balanced" and self._by_uid(candidates, partition.uid) != partition.shard:
            return "kept: was there before"
        return self.strategy


def moves_event(metadata: Metadata, moves: Iterable[Move]) -> ev.PartitionsMoved:
    """The event that makes the moves so, each with the next term; without those of partitions that are gone."""
    made = []
    for move in moves:
        place = (move.stream_id, move.topic_id, move.partition_id, move.uid)
        partition = metadata.find_partition(*place)
        if partition is not None:
            made.append(ev.PartitionMove(*place, move.to_shard, partition.term + 1))
    return ev.PartitionsMoved(made)


def describe(metadata: Metadata, placement: Placement) -> list[dict[str, Any]]:
    """Each live partition with its shard and the reason, by names and number: what `shardserver placement` shows."""
    rows = []
    for stream in sorted(metadata.streams.values(), key=lambda one: one.name):
        for topic in sorted(stream.topics.values(), key=lambda one: one.name):
            for one in topic.partitions:
                row = {"stream": stream.name, "topic": topic.name, "partition": one.id, "uid": one.uid}
                reason = placement.reason(stream.name, topic.name, one)
                rows.append(row | {"shard": one.shard, "term": one.term, "reason": reason})
    return rows
