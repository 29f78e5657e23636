"""The metadata replica: streams, topics, partitions, users.

It is changed by the events of `metadata_events.py` only. Partition uids are never used again.

What can be derived (ids by name, live partitions by shard) is kept beside the fields by the events that change it. It
is no field, so that it is not encoded, and made again by `__post_init__`, which runs after decoding too. Names and
shards are therefore changed by events only.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import msgspec

from shardserver.errors import Code, RejectedError
from shardserver.protocol.options import OptionValue
from shardserver.protocol.primitives import Identifier

ROOT_ID = 0


class Partition(msgspec.Struct):
    """uid names its data on disk; term is raised by a move."""

    id: int
    uid: int
    created_at: int
    term: int = 1
    shard: int = 0


class Topic(msgspec.Struct, dict=True):
    id: int
    name: str
    created_at: int
    options: dict[str, OptionValue]
    partitions: list[Partition] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        # For partition_label.py: runs of uids, and the (count, first uid, last uid) that they are of.
        self.uid_runs: tuple[tuple[int, int, int], list[tuple[int, int]]] | None = None


class Stream(msgspec.Struct, dict=True):
    id: int
    name: str
    created_at: int
    topics: dict[int, Topic] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.topic_ids: dict[str, int] = {topic.name: topic.id for topic in self.topics.values()}


class User(msgspec.Struct):
    """status: 1 active, 2 inactive."""

    id: int
    name: str
    created_at: int
    password_hash: str
    status: int = 1


class Metadata(msgspec.Struct, dict=True):
    """One process's replica. `dying`: uids whose files may still be there -> the shard that owned them."""

    revision: int = 0
    next_uid: int = 1
    boot_number: int = 0
    streams: dict[int, Stream] = msgspec.field(default_factory=dict)
    users: dict[int, User] = msgspec.field(default_factory=dict)
    dying: dict[int, int] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream_ids: dict[str, int] = {stream.name: stream.id for stream in self.streams.values()}
        self.shard_counts = Counter(partition.shard for _, partition in self.live_partitions())

    @property
    def partitions_count(self) -> int:
        """Live partitions."""
        return self.shard_counts.total()

    def find_stream(self, identifier: Identifier) -> Stream:
        """Raises RejectedError(1009)."""
        return _find(self.streams, self.stream_ids, identifier, Code.STREAM_NOT_FOUND)

    def find_topic(self, stream: Identifier, topic: Identifier) -> tuple[Stream, Topic]:
        """Raises RejectedError 1009 or 2010."""
        found = self.find_stream(stream)
        return found, _find(found.topics, found.topic_ids, topic, Code.TOPIC_NOT_FOUND)

    def find_partition(self, stream_id: int, topic_id: int, partition_id: int, uid: int) -> Partition | None:
        """None: it was deleted or purged; what has its ids now, if anything, has another uid."""
        stream = self.streams.get(stream_id)
        topic = stream.topics.get(topic_id) if stream else None
        if topic is None or not 0 <= partition_id < len(topic.partitions):
            return None
        found = topic.partitions[partition_id]
        return found if found.uid == uid else None

    def live_partitions(self) -> list[tuple[Topic, Partition]]:
        topics = [topic for stream in self.streams.values() for topic in stream.topics.values()]
        return [(topic, partition) for topic in topics for partition in topic.partitions]


Named = TypeVar("Named", Stream, Topic)


def _find(objects: dict[int, Named], ids: dict[str, int], identifier: Identifier, code: Code) -> Named:
    number = identifier if isinstance(identifier, int) else ids.get(identifier, -1)
    found = objects.get(number)
    if found is None:
        raise RejectedError(code, repr(identifier))
    return found
