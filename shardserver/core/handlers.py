"""Handlers of data and read commands. Each takes (context, connection, request) and gives the reply's body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import xxhash

from shardserver.core.calls import CutCall, OffsetCall, PollCall, SendCall
from shardserver.core.context import ShardContext
from shardserver.core.group_commands import find_group
from shardserver.core.groups.coordinator import GroupKey
from shardserver.core.metadata import Metadata, Partition, Stream, Topic
from shardserver.core.permissions import manages_topic
from shardserver.core.server_statistics import gather_statistics
from shardserver.core.sessions import Connection
from shardserver.core.shards import Figures
from shardserver.core.snapshot import take_snapshot
from shardserver.errors import Code, RejectedError, ShardServerError
from shardserver.protocol.addresses import CONSUMER_GROUP, PartitionAddress, StreamAddress, TopicAddress
from shardserver.protocol.batch import verify_batch
from shardserver.protocol.body import Empty
from shardserver.protocol.clients import ClientList, GetClientRequest
from shardserver.protocol.messages import (
    KIND_KEY,
    KIND_PARTITION,
    Confirmation,
    PollRequest,
    SendReply,
    SendRequest,
)
from shardserver.protocol.offsets import ACK_COMMITTED, DeleteOffsetRequest, OffsetReply, StoreOffsetRequest
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.streams import StreamDetails, StreamList
from shardserver.protocol.system import (
    ClusterMetadata,
    ClusterNode,
    DescribeOptionsRequest,
    OptionCatalogue,
    Snapshot,
    SnapshotRequest,
)
from shardserver.protocol.topics import DeleteSegmentsRequest, PartitionInfo, TopicDetails, TopicList

Buffers = list[bytes | bytearray | memoryview]

# The kind under which committed offsets of single consumers are stored.
CONSUMER = 1

# System


def get_cluster_metadata(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    host, port = context.advertised
    node = ClusterNode("iggy-node", host or connection.local_host, port)
    return [ClusterMetadata("single-node", (node,)).encode()]


def describe_options(context: ShardContext, connection: Connection, request: DescribeOptionsRequest) -> Buffers:
    return [OptionCatalogue.of(request.scope, context.topic_defaults).encode()]


def get_me(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    return [connection.details().encode()]


async def get_client(context: ShardContext, connection: Connection, request: GetClientRequest) -> Buffers:
    found = await context.shards.client(request.client_id)
    return [] if found is None else [found.encode()]


async def get_clients(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    return [ClientList(tuple(one.info for one in await context.shards.clients())).encode()]


async def get_stats(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    return [(await gather_statistics(context)).encode()]


async def get_snapshot(context: ShardContext, connection: Connection, request: SnapshotRequest) -> Buffers:
    return [Snapshot(await take_snapshot(context, request)).encode()]


# Streams and topics


def _partition_info(partition: Partition, figures: Figures) -> PartitionInfo:
    _, segments, current_offset, size_bytes, messages = figures[partition.uid]
    return PartitionInfo(partition.id, partition.created_at, segments, current_offset, size_bytes, messages)


def _topic_details(context: ShardContext, topic: Topic, figures: Figures) -> TopicDetails:
    partitions = [_partition_info(one, figures) for one in topic.partitions]
    defaults = context.topic_defaults
    return TopicDetails.of(topic.id, topic.created_at, topic.name, topic.options, partitions, defaults)


async def _figures(context: ShardContext, topics: Iterable[Topic]) -> Figures:
    """Asked of the owners; what is deleted meanwhile raises NotOwnerError, and the client asks again."""
    return await context.shards.figures([one for topic in topics for one in topic.partitions])


async def get_stream(context: ShardContext, connection: Connection, request: StreamAddress) -> Buffers:
    try:
        stream = context.metadata.find_stream(request.stream)
    except RejectedError:
        return []
    topics = list(stream.topics.values())
    figures = await _figures(context, topics)
    details = [_topic_details(context, one, figures).header for one in topics]
    return [StreamDetails.of(stream.id, stream.created_at, stream.name, details).encode()]


async def get_streams(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    content = [(stream, list(stream.topics.values())) for stream in context.metadata.streams.values()]
    figures = await _figures(context, [topic for _, topics in content for topic in topics])
    details = []
    for stream, topics in content:
        headers = [_topic_details(context, one, figures).header for one in topics]
        details.append(StreamDetails.of(stream.id, stream.created_at, stream.name, headers).header)
    return [StreamList(tuple(details)).encode()]


async def get_topic(context: ShardContext, connection: Connection, request: TopicAddress) -> Buffers:
    try:
        _, topic = context.metadata.find_topic(request.stream, request.topic)
    except RejectedError:
        return []
    return [_topic_details(context, topic, await _figures(context, [topic])).encode()]


async def get_topics(context: ShardContext, connection: Connection, request: StreamAddress) -> Buffers:
    try:
        topics = list(context.metadata.find_stream(request.stream).topics.values())
    except RejectedError:
        return [TopicList(()).encode()]
    figures = await _figures(context, topics)
    return [TopicList(tuple(_topic_details(context, one, figures).header for one in topics)).encode()]


async def delete_segments(context: ShardContext, connection: Connection, request: DeleteSegmentsRequest) -> None:
    """Oldest sealed segments first, none that still waits for a consumer (operations.md, "Retention")."""
    _, topic = context.metadata.find_topic(request.stream, request.topic)
    partition = _partition_of(topic, request.partition)
    owner = context.shards.owner_of(partition)
    stays = await owner.find_cut(CutCall(partition.uid, request.count))
    await owner.cut(CutCall(partition.uid, stays))


def _partition_of(topic: Topic, number: int) -> Partition:
    if number >= len(topic.partitions):
        raise RejectedError(Code.PARTITION_NOT_FOUND, str(number))
    return topic.partitions[number]


# Messages


def send_messages(
    context: ShardContext,
    connection: Connection,
    request: SendRequest,
    done: Callable[[bytes | ShardServerError], None],
) -> None:
    """done gets the reply's body once the batch is as durable as its topic says.

    Raises RejectedError; ArenaFullError: no memory for it now.
    """
    stream, topic = context.metadata.find_topic(request.stream, request.topic)
    partition = _choose_partition(context, stream, topic, request)
    code = verify_batch(request.batch, request.count)
    if code:
        raise RejectedError(Code(code))

    def appended(outcome: int | ShardServerError) -> None:
        if isinstance(outcome, ShardServerError):
            done(outcome)
        else:
            done(SendReply((Confirmation(stream.id, topic.id, partition.id, outcome),)).encode())

    call = SendCall(partition.uid, request.count)
    context.shards.send(connection, partition, call, request.batch, appended)


def choose_fixed_partition(topic: Topic, request: SendRequest) -> Partition | None:
    """Where all sends with this partitioning go; None: each one is placed anew. Raises RejectedError."""
    if not topic.partitions:
        raise RejectedError(Code.NO_PARTITIONS)
    if request.kind == KIND_PARTITION:
        return _partition_of(topic, int.from_bytes(request.value, "little"))
    if request.kind == KIND_KEY:
        return topic.partitions[xxhash.xxh32_intdigest(request.value) % len(topic.partitions)]
    return None


def _choose_partition(context: ShardContext, stream: Stream, topic: Topic, request: SendRequest) -> Partition:
    fixed = choose_fixed_partition(topic, request)
    if fixed is not None:
        return fixed
    key = (stream.id, topic.id)
    number = context.cursors.get(key, 0)
    context.cursors[key] = number + 1
    return topic.partitions[number % len(topic.partitions)]


def consumer_number(consumer: Identifier) -> int:
    """A named consumer shares the number space of numeric ids (messages 5)."""
    return consumer if isinstance(consumer, int) else xxhash.xxh32_intdigest(consumer.encode())


def resolve_partition(metadata: Metadata, address: PartitionAddress) -> Partition:
    """Raises RejectedError."""
    _, topic = metadata.find_topic(address.stream, address.topic)
    return _partition_of(topic, address.partition or 0)


def consumer_key(metadata: Metadata, address: PartitionAddress) -> int:
    """Whose committed offset counts, in the number space of its kind. Raises RejectedError(5000)."""
    if address.kind == CONSUMER_GROUP:
        return find_group(metadata.find_topic(address.stream, address.topic)[1], address.consumer).id
    return consumer_number(address.consumer)


def poll_messages(context: ShardContext, connection: Connection, request: PollRequest) -> Buffers | Awaitable[Buffers]:
    partition = resolve_partition(context.metadata, request.address)
    call = PollCall(
        partition.uid,
        request.value,
        request.count,
        consumer_key(context.metadata, request.address),
        context.max_reply_bytes,
        request.address.kind,
        request.strategy,
        request.auto_commit,
        connection.session,
    )
    return context.shards.poll(connection, partition, call)


# Committed offsets


def _offset_call(
    context: ShardContext, connection: Connection, address: PartitionAddress, offset: int, acknowledged: bool
) -> tuple[Partition, OffsetCall]:
    """What a store or delete cannot find is code 20 (messages 5.1)."""
    try:
        partition = resolve_partition(context.metadata, address)
        consumer = consumer_key(context.metadata, address)
    except RejectedError as error:
        raise RejectedError(Code.RESOURCE_NOT_FOUND, str(error)) from error
    call = OffsetCall(partition.uid, address.kind, consumer, offset, acknowledged)
    if address.kind != CONSUMER_GROUP:
        return partition, call
    manages = manages_topic(context.metadata, connection.user_id, address)
    return partition, replace(call, member=_member(context, connection, address, consumer), is_manager=manages)


def _member(context: ShardContext, connection: Connection, address: PartitionAddress, group: int) -> int:
    """The session, when it is a member of the group; else 0."""
    stream, topic = context.metadata.find_topic(address.stream, address.topic)
    return connection.session if GroupKey(stream.id, topic.id, topic.uid, group) in connection.groups else 0


async def store_consumer_offset(context: ShardContext, connection: Connection, request: StoreOffsetRequest) -> None:
    committed = request.ack == ACK_COMMITTED
    partition, call = _offset_call(context, connection, request.address, request.offset, committed)
    await context.shards.owner_of(partition).store_offset(call)


async def delete_consumer_offset(context: ShardContext, connection: Connection, request: DeleteOffsetRequest) -> None:
    partition, call = _offset_call(context, connection, request.address, 0, request.ack == ACK_COMMITTED)
    await context.shards.owner_of(partition).delete_offset(call)


async def get_consumer_offset(context: ShardContext, connection: Connection, request: PartitionAddress) -> Buffers:
    partition = resolve_partition(context.metadata, request)
    call = OffsetCall(partition.uid, request.kind, consumer_key(context.metadata, request))
    current, stored = await context.shards.get_offset(partition, call)
    return [] if stored is None else [OffsetReply(partition.id, current, stored).encode()]
