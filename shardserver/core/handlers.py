"""Handlers of data and read commands. Each takes (context, connection, body) and gives the reply's body."""

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
from shardserver.errors import Code, RejectedError, ShardServerError
from shardserver.protocol import commands
from shardserver.protocol import primitives as wire
from shardserver.protocol.batch import verify_batch
from shardserver.protocol.commands import (
    PartitionAddress,
    PartitionInfo,
    PollRequest,
    SendRequest,
    StreamInfo,
    TopicInfo,
)
from shardserver.protocol.primitives import Identifier, Reader
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.read_builder import ReadResult

Buffers = list[bytes | bytearray | memoryview]

KIND_BALANCED, KIND_PARTITION, KIND_KEY = 1, 2, 3
CONSUMER_GROUP = 2
BY_OFFSET, BY_TIMESTAMP, FIRST, LAST, NEXT = 1, 2, 3, 4, 5


# System


def get_cluster_metadata(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    host = context.advertised_host or connection.local_host
    return [commands.encode_cluster_metadata(host, context.port)]


def describe_options(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    return [commands.encode_option_catalogue(Reader(body).u8())]


def get_me(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    return [connection.info().encode()]


def get_client(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    found = context.sessions.connections.get(Reader(body).u32())
    return [] if found is None else [found.info().encode()]


def get_clients(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    return [one.info().encode() for one in context.sessions.connections.values()]


def get_stats(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    process, memory = psutil.Process(), psutil.virtual_memory()
    disk = psutil.disk_usage(context.data_directory)
    counters = process.io_counters()
    logs = list(context.logs.partitions)
    topics = [topic for stream in context.metadata.streams.values() for topic in stream.topics.values()]
    now = context.clock()
    parts = [
        wire.u32(process.pid),
        wire.f32(process.cpu_percent()),
        wire.f32(psutil.cpu_percent()),
        *map(wire.u64, (process.memory_info().rss, memory.total, memory.available, now - context.started_at)),
        *map(wire.u64, (context.started_at, counters.read_bytes, counters.write_bytes)),
        wire.u64(sum(one.size_bytes for one in logs)),
        *map(
            wire.u32, (len(context.metadata.streams), len(topics), len(logs), sum(one.segments_count for one in logs))
        ),
        wire.u64(sum(one.message_count for one in logs)),
        *map(wire.u32, (len(context.sessions.connections), 0)),
        *map(
            wire.str32,
            (socket.gethostname(), platform.system(), platform.version(), platform.release(), context.version),
        ),
        *map(wire.u32, (_semantic_version(context.version), 0, process.num_threads())),
        *map(wire.u64, (disk.free, disk.total)),
    ]
    return [b"".join(parts)]


def _semantic_version(text: str) -> int:
    major, minor, patch = (int(part) for part in text.split(".")[:3])
    return major * 1_000_000 + minor * 1000 + patch


# Streams and topics


def _partition_info(context: ShardContext, partition: Partition) -> PartitionInfo:
    log = context.log_of(partition)
    return PartitionInfo(
        partition.id, partition.created_at, log.segments_count, log.current_offset, log.size_bytes, log.message_count
    )


def _topic_info(context: ShardContext, topic: Topic) -> TopicInfo:
    partitions = tuple(_partition_info(context, one) for one in topic.partitions)
    return TopicInfo(topic.id, topic.created_at, topic.name, topic.options, partitions)


def _stream_info(context: ShardContext, stream: Stream) -> StreamInfo:
    topics = tuple(_topic_info(context, one) for one in stream.topics.values())
    return StreamInfo(stream.id, stream.created_at, stream.name, topics)


def get_stream(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    identifier = Reader(body).identifier()
    try:
        return [_stream_info(context, context.metadata.find_stream(identifier)).encode()]
    except RejectedError:
        return []


def get_streams(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    return [_stream_info(context, one).encode_header() for one in context.metadata.streams.values()]


def get_topic(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    reader = Reader(body)
    stream, topic = reader.identifier(), reader.identifier()
    try:
        return [_topic_info(context, context.metadata.find_topic(stream, topic)[1]).encode()]
    except RejectedError:
        return []


def get_topics(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    identifier = Reader(body).identifier()
    try:
        topics = context.metadata.find_stream(identifier).topics.values()
    except RejectedError:
        return [wire.u32(0)]
    return [wire.u32(len(topics)), *(_topic_info(context, one).encode_header() for one in topics)]


async def delete_segments(context: ShardContext, body: memoryview) -> None:
    """Oldest sealed segments first, none that a stored offset has not passed."""
    reader = Reader(body)
    _, topic = context.metadata.find_topic(reader.identifier(), reader.identifier())
    partition = _partition_of(topic, reader.u32())
    lowest = context.logs.lowest_committed_offset(partition.uid)
    keep_from = None if lowest is None else lowest + 1
    await context.log_of(partition).delete_segments(reader.u32(), keep_from=keep_from)


def _partition_of(topic: Topic, number: int) -> Partition:
    if number >= len(topic.partitions):
        raise RejectedError(Code.PARTITION_NOT_FOUND, str(number))
    return topic.partitions[number]


# Messages


def send_messages(context: ShardContext, body: memoryview, done: Callable[[bytes | ShardServerError], None]) -> None:
    """done gets the reply's body once the batch is as durable as its topic says. Raises RejectedError."""
    request = SendRequest.decode(body)
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
            done(commands.encode_send_reply(stream.id, topic.id, partition.id, outcome))

    context.log_of(partition).append(bytearray(request.batch), request.count, appended)


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


def poll_messages(context: ShardContext, connection: Connection, body: memoryview) -> Buffers | Awaitable[Buffers]:
    request = PollRequest.decode(body)
    partition, log = _resolve(context, request.address)
    if request.strategy == BY_TIMESTAMP:
        return _poll_later(context, request, partition, log)
    start = _start_offset(context, request, partition, log)
    result = log.try_read(start, request.count, context.max_reply_bytes)
    if result is None:
        return _poll_later(context, request, partition, log, start)
    return _poll_reply(context, request, partition, log, result)


async def _poll_later(
    context: ShardContext, request: PollRequest, partition: Partition, log: PartitionLog, start: int = -1
) -> Buffers:
    if start < 0:
        start = await log.offset_at(request.value)
    result = await log.read(start, request.count, context.max_reply_bytes)
    return _poll_reply(context, request, partition, log, result)


def _start_offset(context: ShardContext, request: PollRequest, partition: Partition, log: PartitionLog) -> int:
    if request.strategy == BY_OFFSET:
        return request.value
    if request.strategy == LAST:
        return max(log.first_offset, log.high_watermark - request.count)
    if request.strategy == FIRST:
        return log.first_offset
    stored = context.logs.committed_offset(partition.uid, 1, consumer_number(request.address.consumer))
    return log.first_offset if stored is None else stored + 1


def _poll_reply(
    context: ShardContext, request: PollRequest, partition: Partition, log: PartitionLog, result: ReadResult
) -> Buffers:
    if request.auto_commit and result.count:
        consumer = consumer_number(request.address.consumer)
        context.logs.commit_at_least(partition.uid, 1, consumer, result.last_offset)
    return [commands.encode_poll_head(partition.id, log.current_offset, result.count), *result.buffers]


# Committed offsets


def _resolve_write(context: ShardContext, address: PartitionAddress) -> Partition:
    """As _resolve, but what a store or delete cannot find is code 20 (messages 5.1)."""
    try:
        return _resolve(context, address)[0]
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


async def store_consumer_offset(context: ShardContext, body: memoryview) -> None:
    reader = Reader(body)
    address = PartitionAddress.read(reader)
    offset, ack = reader.u64(), reader.u8()
    partition = _resolve_write(context, address)
    outcome, done = _offset_done(ack == 1)
    context.logs.store_offset(partition.uid, 1, consumer_number(address.consumer), offset, done)
    await outcome


async def delete_consumer_offset(context: ShardContext, body: memoryview) -> None:
    reader = Reader(body)
    address = PartitionAddress.read(reader)
    partition = _resolve_write(context, address)
    outcome, done = _offset_done(reader.u8() == 1)
    context.logs.delete_offset(partition.uid, 1, consumer_number(address.consumer), done)
    await outcome


def get_consumer_offset(context: ShardContext, connection: Connection, body: memoryview) -> Buffers:
    address = PartitionAddress.read(Reader(body))
    partition, log = _resolve(context, address)
    stored = context.logs.committed_offset(partition.uid, 1, consumer_number(address.consumer))
    return [] if stored is None else [commands.encode_offset_reply(partition.id, log.current_offset, stored)]
