"""The metadata replica: streams, topics, partitions, users.

It is changed by the events of `metadata_events.py` only. Uids of partitions, streams and topics and epochs of users are
never used again, whatever becomes of ids and names.

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
from shardserver.protocol.permissions import Permissions
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.users import STATUS_ACTIVE

ROOT_ID = 0


class Partition(msgspec.Struct):
    """uid names its data on disk; term is raised by a move."""

    id: int
    uid: int
    created_at: int
    term: int = 1
    shard: int = 0


class Group(msgspec.Struct, frozen=True):
    """A consumer group. Its committed offsets have its id, which its topic never gives again."""

    id: int
    name: str
    created_at: int


class Topic(msgspec.Struct, dict=True):
    id: int
    name: str
    created_at: int
    options: dict[str, OptionValue]
    partitions: list[Partition] = msgspec.field(default_factory=list)
    uid: int = 0
    groups: dict[int, Group] = msgspec.field(default_factory=dict)
    next_group_id: int = 0

    def __post_init__(self) -> None:
        # For partition_label.py: runs of uids, and the (count, first uid, last uid) that they are of.
        self.uid_runs: tuple[tuple[int, int, int], list[tuple[int, int]]] | None = None


class Stream(msgspec.Struct, dict=True):
    id: int
    name: str
    created_at: int
    topics: dict[int, Topic] = msgspec.field(default_factory=dict)
    uid: int = 0

    def __post_init__(self) -> None:
        self.topic_ids: dict[str, int] = {topic.name: topic.id for topic in self.topics.values()}


class Token(msgspec.Struct, frozen=True):
    """A personal access token. hash: SHA-256 of it. expires_at: microseconds since the epoch; 0: never."""

    name: str
    hash: bytes
    expires_at: int


class User(msgspec.Struct):
    """status: 1 active, 2 inactive. permissions: by uids of streams and topics; None: none.

    epoch: sessions of another one have ended, but for those of the client `spared`, who caused the change.
    """

    id: int
    name: str
    created_at: int
    password_hash: str
    status: int = 1
    permissions: Permissions | None = None
    tokens: dict[str, Token] = msgspec.field(default_factory=dict)
    epoch: int = 0
    spared: bytes = b""

    @property
    def is_active(self) -> bool:
        return self.status == STATUS_ACTIVE


class Metadata(msgspec.Struct, dict=True):
    """One process's replica. `dying`: uids whose files may still be there -> the shard that owned them.

    next_object: of uids of streams and topics, and of epochs.
    """

    revision: int = 0
    next_uid: int = 1
    boot_number: int = 0
    streams: dict[int, Stream] = msgspec.field(default_factory=dict)
    users: dict[int, User] = msgspec.field(default_factory=dict)
    dying: dict[int, int] = msgspec.field(default_factory=dict)
    next_object: int = 1

    def __post_init__(self) -> None:
        for one in self._unnumbered():  # of a snapshot from before there were such numbers
            one.uid = self.take_number()
        self.user_ids: dict[str, int] = {user.name: user.id for user in self.users.values()}
        self.token_owners: dict[bytes, tuple[int, str]] = {
            token.hash: (user.id, token.name) for user in self.users.values() for token in user.tokens.values()
        }
        self.stream_ids: dict[str, int] = {stream.name: stream.id for stream in self.streams.values()}
        self.shard_counts = Counter(partition.shard for _, partition in self.live_partitions())

    def _unnumbered(self) -> list[Stream | Topic]:
        streams = [stream for _, stream in sorted(self.streams.items())]
        found: list[Stream | Topic] = []
        for stream in streams:
            found += [stream, *(topic for _, topic in sorted(stream.topics.items()))]
        return [one for one in found if one.uid == 0]

    def take_number(self) -> int:
        """A new uid or epoch."""
        self.next_object += 1
        return self.next_object - 1

    def find_user(self, identifier: Identifier) -> User | None:
        return self.users.get(identifier if isinstance(identifier, int) else self.user_ids.get(identifier, -1))

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
