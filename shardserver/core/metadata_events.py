"""Events that change the metadata replica, what each does to it, and the record of the metadata log that carries them.

Applying is a pure function of replica and event, so every process can do it in the same order. Events are made by
`metadata_commands.py` and written by `metadata_writer.py`.
"""

from __future__ import annotations

import msgspec

from shardserver.core.metadata import Group, Metadata, Partition, Stream, Token, Topic, User
from shardserver.core.msgpack import decode_value
from shardserver.protocol.options import OptionValue
from shardserver.protocol.permissions import Permissions


class BootEvent(msgspec.Struct, tag="boot", frozen=True):
    """A shard process has started: sessions get a new boot number."""


class UserCreated(msgspec.Struct, tag="user", frozen=True):
    user: User


class UserUpdated(msgspec.Struct, tag="user_update", frozen=True):
    """None leaves a field as it is."""

    id: int
    name: str | None
    status: int | None


class UserDeleted(msgspec.Struct, tag="user_gone", frozen=True):
    id: int


class PasswordSet(msgspec.Struct, tag="password", frozen=True):
    user_id: int
    password_hash: str


class PermissionsSet(msgspec.Struct, tag="permissions", frozen=True):
    """permissions: by uids of streams and topics."""

    user_id: int
    permissions: Permissions | None


class AccessEnded(msgspec.Struct, tag="access_ended", frozen=True):
    """The user's sessions end, but for those of the client `spared`, and its tokens are gone."""

    user_id: int
    spared: bytes = b""


class TokenCreated(msgspec.Struct, tag="token", frozen=True):
    user_id: int
    token: Token


class TokensRemoved(msgspec.Struct, tag="tokens_gone", frozen=True):
    """hashes: of any users; one that is not there any more counts for nothing."""

    hashes: list[bytes]


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
    """uids, shards: one a partition, in the order of partition ids."""

    stream_id: int
    id: int
    name: str
    created_at: int
    options: dict[str, OptionValue]
    uids: list[int]
    shards: list[int]


class TopicUpdated(msgspec.Struct, tag="topic_update", frozen=True):
    stream_id: int
    id: int
    name: str
    options: dict[str, OptionValue]


class TopicDeleted(msgspec.Struct, tag="topic_gone", frozen=True):
    stream_id: int
    id: int


class TopicPurged(msgspec.Struct, tag="topic_purged", frozen=True):
    """Each partition goes on under a new uid, on its shard; the data of the old ones is dead.

    The term stays: the new uid tells new records from old ones already, and a term that never goes back orders
    all that was ever said of a partition.
    """

    stream_id: int
    id: int
    uids: list[int]


class PartitionsAdded(msgspec.Struct, tag="partitions", frozen=True):
    stream_id: int
    id: int
    created_at: int
    uids: list[int]
    shards: list[int]


class PartitionMove(msgspec.Struct, frozen=True):
    """From now on the partition lives on `shard`, and its records carry `term`."""

    stream_id: int
    topic_id: int
    partition_id: int
    uid: int
    shard: int
    term: int


class PartitionsMoved(msgspec.Struct, tag="moved", frozen=True):
    """A move of a partition that has another uid by now, or is gone, counts for nothing."""

    moves: list[PartitionMove]


class PartitionsRemoved(msgspec.Struct, tag="partitions_gone", frozen=True):
    """The `count` highest ids."""

    stream_id: int
    id: int
    count: int


class GroupCreated(msgspec.Struct, tag="group", frozen=True):
    stream_id: int
    topic_id: int
    id: int
    name: str
    created_at: int


class GroupDeleted(msgspec.Struct, tag="group_gone", frozen=True):
    stream_id: int
    topic_id: int
    id: int


class DataRemoved(msgspec.Struct, tag="data_gone", frozen=True):
    """The files of these dying uids are gone."""

    uids: list[int]


Event = (
    BootEvent
    | UserCreated
    | UserUpdated
    | UserDeleted
    | PasswordSet
    | PermissionsSet
    | AccessEnded
    | TokenCreated
    | TokensRemoved
    | StreamCreated
    | StreamRenamed
    | StreamDeleted
    | TopicCreated
    | TopicUpdated
    | TopicDeleted
    | TopicPurged
    | PartitionsAdded
    | PartitionsMoved
    | PartitionsRemoved
    | GroupCreated
    | GroupDeleted
    | DataRemoved
)


def apply(metadata: Metadata, event: Event) -> None:
    """Change the replica as the event says. The event was valid when it was made."""
    metadata.revision += 1
    match event:
        case BootEvent():
            metadata.boot_number += 1
        case UserCreated() | UserUpdated() | UserDeleted() | PasswordSet() | PermissionsSet() | AccessEnded():
            _apply_user(metadata, event)
        case TokenCreated(user_id, token):
            metadata.users[user_id].tokens[token.name] = token
            metadata.token_owners[token.hash] = (user_id, token.name)
        case TokensRemoved(hashes):
            _remove_tokens(metadata, hashes)
        case GroupCreated(stream_id, topic_id, id, name, created_at):
            topic = metadata.streams[stream_id].topics[topic_id]
            topic.groups[id], topic.next_group_id = Group(id, name, created_at), id + 1
        case GroupDeleted(stream_id, topic_id, id):
            del metadata.streams[stream_id].topics[topic_id].groups[id]
        case DataRemoved(uids):
            for uid in uids:
                metadata.dying.pop(uid, None)
        case PartitionsMoved(moves):
            for move in moves:
                _move(metadata, move)
        case StreamCreated() | StreamRenamed() | StreamDeleted():
            _apply_stream(metadata, event)
        case _:
            _apply_topic(metadata, metadata.streams[event.stream_id], event)


UserEvent = UserCreated | UserUpdated | UserDeleted | PasswordSet | PermissionsSet | AccessEnded


def _apply_user(metadata: Metadata, event: UserEvent) -> None:
    match event:
        case UserCreated(user):
            # A copy: replicas in one process share no user. Who made the event has no number for it.
            made = msgspec.structs.replace(user, epoch=metadata.take_number(), tokens=dict(user.tokens))
            metadata.users[made.id] = made
            metadata.user_ids[made.name] = made.id
        case UserUpdated(id, name, status):
            user = metadata.users[id]
            if name is not None:
                del metadata.user_ids[user.name]
                user.name, metadata.user_ids[name] = name, id
            user.status = user.status if status is None else status
        case UserDeleted(id):
            user = metadata.users[id]
            _remove_tokens(metadata, [token.hash for token in user.tokens.values()])
            del metadata.users[id], metadata.user_ids[user.name]
        case PasswordSet(user_id, password_hash):
            metadata.users[user_id].password_hash = password_hash
        case PermissionsSet(user_id, permissions):
            metadata.users[user_id].permissions = permissions
        case AccessEnded(user_id, spared):
            user = metadata.users[user_id]
            user.epoch, user.spared = metadata.take_number(), spared
            _remove_tokens(metadata, [token.hash for token in user.tokens.values()])


def _remove_tokens(metadata: Metadata, hashes: list[bytes]) -> None:
    for one in hashes:
        if one in metadata.token_owners:
            user_id, name = metadata.token_owners.pop(one)
            del metadata.users[user_id].tokens[name]


def _apply_stream(metadata: Metadata, event: StreamCreated | StreamRenamed | StreamDeleted) -> None:
    match event:
        case StreamCreated(id, name, created_at):
            metadata.streams[id] = Stream(id, name, created_at, uid=metadata.take_number())
            metadata.stream_ids[name] = id
        case StreamRenamed(id, name):
            stream = metadata.streams[id]
            del metadata.stream_ids[stream.name]
            stream.name, metadata.stream_ids[name] = name, id
        case StreamDeleted(id):
            stream = metadata.streams.pop(id)
            del metadata.stream_ids[stream.name]
            for topic in stream.topics.values():
                _end_partitions(metadata, topic.partitions)


TopicEvent = TopicCreated | TopicUpdated | TopicDeleted | TopicPurged | PartitionsAdded | PartitionsRemoved


def _apply_topic(metadata: Metadata, stream: Stream, event: TopicEvent) -> None:
    match event:
        case TopicCreated(_, id, name, created_at, options, uids, shards):
            stream.topics[id] = topic = Topic(id, name, created_at, options, uid=metadata.take_number())
            stream.topic_ids[name] = id
            _add_partitions(metadata, topic, uids, shards, created_at)
        case TopicUpdated(_, id, name, options):
            topic = stream.topics[id]
            del stream.topic_ids[topic.name]
            stream.topic_ids[name] = id
            topic.name, topic.options = name, topic.options | options
        case TopicDeleted(_, id):
            topic = stream.topics.pop(id)
            del stream.topic_ids[topic.name]
            _end_partitions(metadata, topic.partitions)
        case TopicPurged(_, id, uids):
            topic = stream.topics[id]
            _bury(metadata, topic.partitions)
            for partition, uid in zip(topic.partitions, uids, strict=True):
                partition.uid = uid
            _use_uids(metadata, uids)
        case PartitionsAdded(_, id, created_at, uids, shards):
            _add_partitions(metadata, stream.topics[id], uids, shards, created_at)
        case PartitionsRemoved(_, id, count):
            topic = stream.topics[id]
            _end_partitions(metadata, topic.partitions[-count:])
            del topic.partitions[-count:]


def _add_partitions(metadata: Metadata, topic: Topic, uids: list[int], shards: list[int], created_at: int) -> None:
    for uid, shard in zip(uids, shards, strict=True):
        topic.partitions.append(Partition(len(topic.partitions), uid, created_at, shard=shard))
    metadata.shard_counts.update(shards)
    _use_uids(metadata, uids)


def _use_uids(metadata: Metadata, uids: list[int]) -> None:
    metadata.next_uid = max([metadata.next_uid - 1, *uids]) + 1


def _end_partitions(metadata: Metadata, partitions: list[Partition]) -> None:
    _bury(metadata, partitions)
    metadata.shard_counts.subtract(partition.shard for partition in partitions)


def _bury(metadata: Metadata, partitions: list[Partition]) -> None:
    metadata.dying.update((partition.uid, partition.shard) for partition in partitions)


def _move(metadata: Metadata, move: PartitionMove) -> None:
    partition = metadata.find_partition(move.stream_id, move.topic_id, move.partition_id, move.uid)
    if partition is not None:
        metadata.shard_counts[partition.shard] -= 1
        metadata.shard_counts[move.shard] += 1
        partition.shard, partition.term = move.shard, move.term


class Change(msgspec.Struct, frozen=True):
    """One record of the metadata log: the events, and what the client was answered (for repeats after a restart)."""

    events: list[Event]
    client: bytes = b""
    request: int = 0
    request_checksum: bytes = b""
    reply: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


def apply_change(metadata: Metadata, change: Change) -> None:
    for event in change.events:
        apply(metadata, event)


def encode_change(change: Change) -> bytes:
    return _encoder.encode(change)


def decode_change(raw: bytes) -> Change:
    """Raises msgspec.DecodeError."""
    return decode_value(_decoder, raw)
