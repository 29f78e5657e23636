"""The metadata replica: streams, topics, partitions, users; and the events that change it.

Applying an event is a pure function of replica and event, so every process can do it in the same order.
Events are made by `metadata_commands.py`, written by `metadata_writer.py`. Partition uids are never used again.
"""

from __future__ import annotations

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


class Topic(msgspec.Struct):
    id: int
    name: str
    created_at: int
    options: dict[str, OptionValue]
    partitions: list[Partition] = msgspec.field(default_factory=list)


class Stream(msgspec.Struct):
    id: int
    name: str
    created_at: int
    topics: dict[int, Topic] = msgspec.field(default_factory=dict)


class User(msgspec.Struct):
    """status: 1 active, 2 inactive."""

    id: int
    name: str
    created_at: int
    password_hash: str
    status: int = 1


class Metadata(msgspec.Struct):
    """One process's replica. `dying`: uids whose files may still be there."""

    revision: int = 0
    next_uid: int = 1
    boot_number: int = 0
    streams: dict[int, Stream] = msgspec.field(default_factory=dict)
    users: dict[int, User] = msgspec.field(default_factory=dict)
    dying: set[int] = msgspec.field(default_factory=set)

    def find_stream(self, identifier: Identifier) -> Stream:
        """Raises RejectedError(1009)."""
        return _find(self.streams, identifier, Code.STREAM_NOT_FOUND)

    def find_topic(self, stream: Identifier, topic: Identifier) -> tuple[Stream, Topic]:
        """Raises RejectedError 1009 or 2010."""
        found = self.find_stream(stream)
        return found, _find(found.topics, topic, Code.TOPIC_NOT_FOUND)

    def live_partitions(self) -> list[tuple[Topic, Partition]]:
        topics = [topic for stream in self.streams.values() for topic in stream.topics.values()]
        return [(topic, partition) for topic in topics for partition in topic.partitions]


Named = TypeVar("Named", Stream, Topic)


def _find(objects: dict[int, Named], identifier: Identifier, code: Code) -> Named:
    if isinstance(identifier, int):
        found = objects.get(identifier)
    else:
        found = next((one for one in objects.values() if one.name == identifier), None)
    if found is None:
        raise RejectedError(code, repr(identifier))
    return found


class BootEvent(msgspec.Struct, tag="boot", frozen=True):
    """A shard process has started: sessions get a new boot number."""


class UserCreated(msgspec.Struct, tag="user", frozen=True):
    user: User


class PasswordSet(msgspec.Struct, tag="password", frozen=True):
    user_id: int
    password_hash: str


class StreamCreated(msgspec.Struct, tag="stream", frozen=True):
    id: int
    name: str
    created_at: int


class StreamRenamed(msgspec.Struct, tag="stream_name", frozen=True):
    id: int
    name: str


class StreamDeleted(msgspec.Struct, tag="stream_gone", frozen=True):
    id: int


class TopicCreated(msgspec.Struct, tag="topic", frozen=True):
    """uids: one a partition, in the order of partition ids."""

    stream_id: int
    id: int
    name: str
    created_at: int
    options: dict[str, OptionValue]
    uids: list[int]


class TopicUpdated(msgspec.Struct, tag="topic_update", frozen=True):
    stream_id: int
    id: int
    name: str
    options: dict[str, OptionValue]


class TopicDeleted(msgspec.Struct, tag="topic_gone", frozen=True):
    stream_id: int
    id: int


class TopicPurged(msgspec.Struct, tag="topic_purged", frozen=True):
    """Each partition goes on under a new uid; the data of the old ones is dead."""

    stream_id: int
    id: int
    uids: list[int]


class PartitionsAdded(msgspec.Struct, tag="partitions", frozen=True):
    stream_id: int
    id: int
    created_at: int
    uids: list[int]


class PartitionsRemoved(msgspec.Struct, tag="partitions_gone", frozen=True):
    """The `count` highest ids."""

    stream_id: int
    id: int
    count: int


class DataRemoved(msgspec.Struct, tag="data_gone", frozen=True):
    """The files of these dying uids are gone."""

    uids: list[int]


Event = (
    BootEvent
    | UserCreated
    | PasswordSet
    | StreamCreated
    | StreamRenamed
    | StreamDeleted
    | TopicCreated
    | TopicUpdated
    | TopicDeleted
    | TopicPurged
    | PartitionsAdded
    | PartitionsRemoved
    | DataRemoved
)


def apply(metadata: Metadata, event: Event) -> None:
    """Change the replica as the event says. The event was valid when it was made."""
    metadata.revision += 1
    match event:
        case BootEvent():
            metadata.boot_number += 1
        case UserCreated(user):
            metadata.users[user.id] = user
        case PasswordSet(user_id, password_hash):
            metadata.users[user_id].password_hash = password_hash
        case DataRemoved(uids):
            metadata.dying.difference_update(uids)
        case StreamCreated(id, name, created_at):
            metadata.streams[id] = Stream(id, name, created_at)
        case StreamRenamed(id, name):
            metadata.streams[id].name = name
        case StreamDeleted(id):
            for topic in metadata.streams.pop(id).topics.values():
                _bury(metadata, topic.partitions)
        case _:
            _apply_topic(metadata, event)


def _apply_topic(metadata: Metadata, event: Event) -> None:
    match event:
        case TopicCreated(stream_id, id, name, created_at, options, uids):
            topic = Topic(id, name, created_at, options)
            metadata.streams[stream_id].topics[id] = topic
            _add_partitions(metadata, topic, uids, created_at)
        case TopicUpdated(stream_id, id, name, options):
            topic = metadata.streams[stream_id].topics[id]
            topic.name, topic.options = name, topic.options | options
        case TopicDeleted(stream_id, id):
            _bury(metadata, metadata.streams[stream_id].topics.pop(id).partitions)
        case TopicPurged(stream_id, id, uids):
            topic = metadata.streams[stream_id].topics[id]
            _bury(metadata, topic.partitions)
            for partition, uid in zip(topic.partitions, uids, strict=True):
                partition.uid = uid
            _use_uids(metadata, uids)
        case PartitionsAdded(stream_id, id, created_at, uids):
            _add_partitions(metadata, metadata.streams[stream_id].topics[id], uids, created_at)
        case PartitionsRemoved(stream_id, id, count):
            topic = metadata.streams[stream_id].topics[id]
            _bury(metadata, topic.partitions[-count:])
            del topic.partitions[-count:]


def _add_partitions(metadata: Metadata, topic: Topic, uids: list[int], created_at: int) -> None:
    for uid in uids:
        topic.partitions.append(Partition(len(topic.partitions), uid, created_at))
    _use_uids(metadata, uids)


def _use_uids(metadata: Metadata, uids: list[int]) -> None:
    metadata.next_uid = max([metadata.next_uid - 1, *uids]) + 1


def _bury(metadata: Metadata, partitions: list[Partition]) -> None:
    metadata.dying.update(partition.uid for partition in partitions)


class Change(msgspec.Struct, frozen=True):
    """One record of the metadata log: the events, and what the client was answered (for repeats after a restart)."""

    events: list[Event]
    client: bytes = b""
    request: int = 0
    request_checksum: bytes = b""
    reply: bytes = b""


_change_encoder = msgspec.msgpack.Encoder()
_change_decoder = msgspec.msgpack.Decoder(Change)
_snapshot_decoder = msgspec.msgpack.Decoder(Metadata)


def encode_change(change: Change) -> bytes:
    return _change_encoder.encode(change)


def decode_change(raw: bytes) -> Change:
    return _change_decoder.decode(raw)


def encode_snapshot(metadata: Metadata) -> bytes:
    return _change_encoder.encode(metadata)


def decode_snapshot(raw: bytes) -> Metadata:
    return _snapshot_decoder.decode(raw)
