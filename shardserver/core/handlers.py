"""Handlers of data and read commands. Each takes (context, connection, request) and gives the reply's body."""

from __future__ import annotations

import asyncio
import platform
import socket
from collections.abc import Awaitable, Callable

import psutil
import xxhash

from shardserver.core.context import ShardContext
from shardserver.core.metadata import Partition, Stream, Topic
from shardserver.core.sessions import Connection
from shardserver.errors import Code, RejectedError, ShardServerError, StorageError
from shardserver.protocol.addresses import CONSUMER_GROUP, PartitionAddress, StreamAddress, TopicAddress
from shardserver.protocol.batch import verify_batch
from shardserver.protocol.body import Empty
from shardserver.protocol.clients import ClientDetails, ClientList, GetClientRequest
from shardserver.protocol.messages import (
    BY_OFFSET,
    BY_TIMESTAMP,
    FIRST,
    KIND_KEY,
    KIND_PARTITION,
    LAST,
    Confirmation,
    PollRequest,
    SendReply,
    SendRequest,
    encode_poll_head,
)
from shardserver.protocol.offsets import ACK_COMMITTED, DeleteOffsetRequest, OffsetReply, StoreOffsetRequest
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.statistics import Statistics, semver_number
from shardserver.protocol.streams import StreamDetails, StreamList
from shardserver.protocol.system import ClusterMetadata, ClusterNode, DescribeOptionsRequest, OptionCatalogue
from shardserver.protocol.topics import DeleteSegmentsRequest, PartitionInfo, TopicDetails, TopicList
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.read_builder import ReadResult

Buffers = list[bytes | bytearray | memoryview]

# Kept, because its CPU share is that since it was asked before.
_PROCESS = psutil.Process()

# System


def get_cluster_metadata(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    host = context.advertised_host or connection.local_host
    return [ClusterMetadata("single-node", (ClusterNode("iggy-node", host, context.port),)).encode()]


def describe_options(context: ShardContext, connection: Connection, request: DescribeOptionsRequest) -> Buffers:
    return [OptionCatalogue.of(request.scope).encode()]


def get_me(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    return [ClientDetails(connection.info()).encode()]


def get_client(context: ShardContext, connection: Connection, request: GetClientRequest) -> Buffers:
    found = context.sessions.connections.get(request.client_id)
    return [] if found is None else [ClientDetails(found.info()).encode()]


def get_clients(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    return [ClientList(tuple(one.info() for one in context.sessions.connections.values())).encode()]


def get_stats(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    process, memory = _PROCESS, psutil.virtual_memory()
    disk = psutil.disk_usage(context.data_directory)
    counters = process.io_counters()
    logs = list(context.logs.partitions)
    statistics = Statistics(
        process_id=process.pid,
        cpu_usage=process.cpu_percent(),
        total_cpu_usage=psutil.cpu_percent(),
        memory_usage=process.memory_info().rss,
        total_memory=memory.total,
        available_memory=memory.available,
        run_time=context.clock() - context.started_at,
        start_time=context.started_at,
        read_bytes=counters.read_bytes,
        written_bytes=counters.write_bytes,
        messages_size_bytes=sum(one.size_bytes for one in logs),
        streams_count=len(context.metadata.streams),
        topics_count=sum(len(stream.topics) for stream in context.metadata.streams.values()),
        partitions_count=len(logs),
        segments_count=sum(one.segments_count for one in logs),
        messages_count=sum(one.message_count for one in logs),
        clients_count=len(context.sessions.connections),
        consumer_groups_count=0,
        hostname=socket.gethostname(),
        os_name=platform.system(),
        os_version=platform.version(),
        kernel_version=platform.release(),
        server_version=context.version,
        server_semver=semver_number(context.version),
        cache_metrics=(),
        threads_count=process.num_threads(),
        free_disk_space=disk.free,
        total_disk_space=disk.total,
    )
    return [statistics.encode()]


# Streams and topics


def _partition_info(context: ShardContext, partition: Partition) -> PartitionInfo:
    log = context.log_of(partition)
    return PartitionInfo(
        partition.id, partition.created_at, log.segments_count, log.current_offset, log.size_bytes, log.message_count
    )


def _topic_details(context: ShardContext, topic: Topic) -> TopicDetails:
    partitions = [_partition_info(context, one) for one in topic.partitions]
    return TopicDetails.of(topic.id, topic.created_at, topic.name, topic.options, partitions)


def _stream_details(context: ShardContext, stream: Stream) -> StreamDetails:
    topics = [_topic_details(context, one).header for one in stream.topics.values()]
    return StreamDetails.of(stream.id, stream.created_at, stream.name, topics)


def get_stream(context: ShardContext, connection: Connection, request: StreamAddress) -> Buffers:
    try:
        return [_stream_details(context, context.metadata.find_stream(request.stream)).encode()]
    except RejectedError:
        return []


def get_streams(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    streams = context.metadata.streams.values()
    return [StreamList(tuple(_stream_details(context, one).header for one in streams)).encode()]


def get_topic(context: ShardContext, connection: Connection, request: TopicAddress) -> Buffers:
    try:
        return [_topic_details(context, context.metadata.find_topic(request.stream, request.topic)[1]).encode()]
    except RejectedError:
        return []


def get_topics(context: ShardContext, connection: Connection, request: StreamAddress) -> Buffers:
    try:
        topics = context.metadata.find_stream(request.stream).topics.values()
    except RejectedError:
        return [TopicList(()).encode()]
    return [TopicList(tuple(_topic_details(context, one).header for one in topics)).encode()]


async def delete_segments(context: ShardContext, request: DeleteSegmentsRequest) -> None:
    """Oldest sealed segments first, none that a stored offset has not passed."""
    _, topic = context.metadata.find_topic(request.stream, request.topic)
    partition = _partition_of(topic, request.partition)
    lowest = context.logs.offsets.lowest(partition.uid)
    keep_from = None if lowest is None else lowest + 1
    await context.log_of(partition).delete_segments(request.count, keep_from=keep_from)


def _partition_of(topic: Topic, number: int) -> Partition:
    if number >= len(topic.partitions):
        raise RejectedError(Code.PARTITION_NOT_FOUND, str(number))
    return topic.partitions[number]


# Messages


def send_messages(
    context: ShardContext, request: SendRequest, done: Callable[[bytes | ShardServerError], None]
) -> None:
    """done gets the reply's body once the batch is as durable as its topic says.

    Raises RejectedError; ArenaFullError: no memory for it now.
    """
    stream, topic = context.metadata.find_topic(request.stream, request.topic)
    if not topic.partitions:
        raise RejectedError(Code.NO_PARTITIONS)
    partition = _choose_partition(context, stream, topic, request)
    code = verify_batch(request.batch, request.count)
    if code:
        raise RejectedError(Code(code))

    def appended(outcome: int | ShardServerError) -> None:
        if isinstance(outcome, ShardServerError):
            done(outcome)
        else:
            done(SendReply((Confirmation(stream.id, topic.id, partition.id, outcome),)).encode())

    log, batch = context.log_of(partition), context.logs.copy_batch(request.batch)
    try:
        log.append(batch, request.count, appended)
    except Exception as error:  # a bug amid a change: what is in memory of this partition may be half of it
        log.fence(StorageError(f"an append failed inside the server: {error!r}"))
        raise


def _choose_partition(context: ShardContext, stream: Stream, topic: Topic, request: SendRequest) -> Partition:
    if request.kind == KIND_PARTITION:
        return _partition_of(topic, int.from_bytes(request.value, "little"))
    if request.kind == KIND_KEY:
        return topic.partitions[xxhash.xxh32_intdigest(request.value) % len(topic.partitions)]
    key = (stream.id, topic.id)
    number = context.cursors.get(key, 0)
    context.cursors[key] = number + 1
    return topic.partitions[number % len(topic.partitions)]


def consumer_number(consumer: Identifier) -> int:
    """A named consumer shares the number space of numeric ids (messages 5)."""
    return consumer if isinstance(consumer, int) else xxhash.xxh32_intdigest(consumer.encode())


def _resolve(context: ShardContext, address: PartitionAddress) -> tuple[Partition, PartitionLog]:
    _, topic = context.metadata.find_topic(address.stream, address.topic)
    partition = _partition_of(topic, address.partition or 0)
    if address.kind == CONSUMER_GROUP:
        raise RejectedError(Code.FEATURE_UNAVAILABLE, "consumer groups")
    return partition, context.log_of(partition)


def poll_messages(context: ShardContext, connection: Connection, request: PollRequest) -> Buffers | Awaitable[Buffers]:
    partition, log = _resolve(context, request.address)
    if request.strategy == BY_TIMESTAMP:
        return _poll_later(context, request, partition, log)
    start = _start_offset(context, request, partition, log)
    result = log.reader.try_read(start, request.count, context.max_reply_bytes)
    if result is None:
        return _poll_later(context, request, partition, log, start)
    return _poll_reply(context, request, partition, log, result)


async def _poll_later(
    context: ShardContext, request: PollRequest, partition: Partition, log: PartitionLog, start: int = -1
) -> Buffers:
    if start < 0:
        start = await log.reader.offset_at(request.value)
    result = await log.reader.read(start, request.count, context.max_reply_bytes)
    return _poll_reply(context, request, partition, log, result)


def _start_offset(context: ShardContext, request: PollRequest, partition: Partition, log: PartitionLog) -> int:
    if request.strategy == BY_OFFSET:
        return request.value
    if request.strategy == LAST:
        return max(log.first_offset, log.high_watermark - request.count)
    if request.strategy == FIRST:
        return log.first_offset
    stored = context.logs.offsets.get(partition.uid, 1, consumer_number(request.address.consumer))
    return log.first_offset if stored is None else stored + 1


def _poll_reply(
    context: ShardContext, request: PollRequest, partition: Partition, log: PartitionLog, result: ReadResult
) -> Buffers:
    if request.auto_commit and result.count:
        consumer = consumer_number(request.address.consumer)
        context.logs.offsets.commit_at_least(log, 1, consumer, result.last_offset)
    return [encode_poll_head(partition.id, log.current_offset, result.count), *result.buffers]


# Committed offsets


def _resolve_write(context: ShardContext, address: PartitionAddress) -> PartitionLog:
    """As _resolve, but what a store or delete cannot find is code 20 (messages 5.1)."""
    try:
        return _resolve(context, address)[1]
    except RejectedError as error:
        if error.code is Code.FEATURE_UNAVAILABLE:
            raise
        raise RejectedError(Code.RESOURCE_NOT_FOUND, str(error)) from error


def _offset_done(acknowledged: bool) -> tuple[asyncio.Future[None], Callable[[ShardServerError | None], None] | None]:
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if not acknowledged:
        outcome.set_result(None)
        return outcome, None

    def done(error: ShardServerError | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    return outcome, done


async def store_consumer_offset(context: ShardContext, request: StoreOffsetRequest) -> None:
    log = _resolve_write(context, request.address)
    outcome, done = _offset_done(request.ack == ACK_COMMITTED)
    context.logs.offsets.store(log, 1, consumer_number(request.address.consumer), request.offset, done)
    await outcome


async def delete_consumer_offset(context: ShardContext, request: DeleteOffsetRequest) -> None:
    log = _resolve_write(context, request.address)
    outcome, done = _offset_done(request.ack == ACK_COMMITTED)
    context.logs.offsets.delete(log, 1, consumer_number(request.address.consumer), done)
    await outcome


def get_consumer_offset(context: ShardContext, connection: Connection, request: PartitionAddress) -> Buffers:
    partition, log = _resolve(context, request)
    stored = context.logs.offsets.get(partition.uid, 1, consumer_number(request.consumer))
    return [] if stored is None else [OffsetReply(partition.id, log.current_offset, stored).encode()]
