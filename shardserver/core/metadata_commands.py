"""What a metadata request means: a check against the replica, the events it makes, and the reply's payload.

Each plan takes (replica, request, context) and raises RejectedError with the code of the protocol.
"""

from __future__ import annotations

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_events import Event
from shardserver.core.planning import Plan, PlanContext, Planner, lowest_free, refuse_options
from shardserver.errors import Code, RejectedError
from shardserver.protocol import options as topic_options
from shardserver.protocol.addresses import StreamAddress, TopicAddress
from shardserver.protocol.streams import CreateStreamRequest, StreamDetails, UpdateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import (
    CreateTopicRequest,
    PartitionInfo,
    PartitionsRequest,
    TopicDetails,
    UpdateTopicRequest,
)

MAX_STREAMS = 1_048_576
MAX_TOPICS = 4096
MAX_PARTITIONS_PER_REQUEST = 1000
MAX_PARTITION_IDS = 1_000_000
MAX_PREALLOCATED_BYTES = 64 << 30


def create_stream(metadata: Metadata, request: CreateStreamRequest, context: PlanContext) -> Plan:
    name = request.name
    refuse_options(request.options)
    if name in metadata.stream_ids:
        raise RejectedError(Code.STREAM_NAME_ALREADY_EXISTS, name)
    if len(metadata.streams) >= MAX_STREAMS:
        raise RejectedError(Code.TOO_MANY_STREAMS)
    stream_id, now = lowest_free(metadata.streams), context.now
    return Plan([ev.StreamCreated(stream_id, name, now)], StreamDetails.of(stream_id, now, name, ()).encode())


def update_stream(metadata: Metadata, request: UpdateStreamRequest, context: PlanContext) -> Plan:
    stream, name = metadata.find_stream(request.stream), request.name
    refuse_options(request.options)
    if metadata.stream_ids.get(name, stream.id) != stream.id:
        raise RejectedError(Code.STREAM_NAME_ALREADY_EXISTS, name)
    return Plan([ev.StreamRenamed(stream.id, name)])


def delete_stream(metadata: Metadata, request: StreamAddress, context: PlanContext) -> Plan:
    return Plan([ev.StreamDeleted(metadata.find_stream(request.stream).id)])


def _purge(metadata: Metadata, stream: md.Stream, topics: list[md.Topic]) -> Plan:
    events: list[Event] = []
    uid = metadata.next_uid
    for topic in topics:
        count = len(topic.partitions)
        events.append(ev.TopicPurged(stream.id, topic.id, list(range(uid, uid + count))))
        uid += count
    return Plan(events)


def purge_stream(metadata: Metadata, request: StreamAddress, context: PlanContext) -> Plan:
    stream = metadata.find_stream(request.stream)
    return _purge(metadata, stream, list(stream.topics.values()))


def create_topic(metadata: Metadata, request: CreateTopicRequest, context: PlanContext) -> Plan:
    stream = metadata.find_stream(request.stream)
    count, name = request.partitions_count, request.name
    options = topic_options.resolve_created(topic_options.parse_topic_options(request.options), context.topic_defaults)
    if count > MAX_PARTITIONS_PER_REQUEST:
        raise RejectedError(Code.TOO_MANY_PARTITIONS, str(count))
    _refuse_preallocation(options, count)
    if name in stream.topic_ids:
        raise RejectedError(Code.TOPIC_NAME_ALREADY_EXISTS, name)
    if len(stream.topics) >= MAX_TOPICS:
        raise RejectedError(Code.TOO_MANY_TOPICS)
    topic_id, now = lowest_free(stream.topics), context.now
    uids, shards = _place(metadata, context, stream.name, name, count)
    partitions = [PartitionInfo(number, now, 1, 0, 0, 0) for number in range(count)]
    reply = TopicDetails.of(topic_id, now, name, options, partitions, context.topic_defaults).encode()
    return Plan([ev.TopicCreated(stream.id, topic_id, name, now, options, uids, shards)], reply)


def _place(
    metadata: Metadata, context: PlanContext, stream: str, topic: str, count: int
) -> tuple[list[int], list[int]]:
    """Uids and shards of new partitions. Raises RejectedError(2015): more than the server can carry."""
    limit = context.partition_limit
    if count and limit is not None and metadata.partitions_count + count > limit:
        raise RejectedError(Code.TOO_MANY_PARTITIONS, f"{metadata.partitions_count} + {count}, limit {limit}")
    uids = list(range(metadata.next_uid, metadata.next_uid + count))
    return uids, context.placement.choose(metadata, stream, topic, uids)


def _refuse_preallocation(options: dict[str, topic_options.OptionValue], count: int) -> None:
    wanted = int(topic_options.effective(options, "segment_size")) * count
    if topic_options.effective(options, "preallocate_segments") and wanted > MAX_PREALLOCATED_BYTES:
        raise RejectedError(Code.INVALID_OPTION_VALUE, "preallocate_segments")


def update_topic(metadata: Metadata, request: UpdateTopicRequest, context: PlanContext) -> Plan:
    stream, topic = metadata.find_topic(request.stream, request.topic)
    name = request.name
    patch = topic_options.parse_topic_options(request.options, update=True)
    if stream.topic_ids.get(name, topic.id) != topic.id:
        raise RejectedError(Code.TOPIC_NAME_ALREADY_EXISTS, name)
    if "max_topic_size" in patch:
        topic_options.check_topic_size(topic.options | patch)
    return Plan([ev.TopicUpdated(stream.id, topic.id, name, patch)])


def delete_topic(metadata: Metadata, request: TopicAddress, context: PlanContext) -> Plan:
    stream, topic = metadata.find_topic(request.stream, request.topic)
    return Plan([ev.TopicDeleted(stream.id, topic.id)])


def purge_topic(metadata: Metadata, request: TopicAddress, context: PlanContext) -> Plan:
    stream, topic = metadata.find_topic(request.stream, request.topic)
    return _purge(metadata, stream, [topic])


def _checked_count(request: PartitionsRequest) -> int:
    if not 1 <= request.count <= MAX_PARTITIONS_PER_REQUEST:
        raise RejectedError(Code.TOO_MANY_PARTITIONS, str(request.count))
    return request.count


def create_partitions(metadata: Metadata, request: PartitionsRequest, context: PlanContext) -> Plan:
    stream, topic = metadata.find_topic(request.stream, request.topic)
    count = _checked_count(request)
    if len(topic.partitions) + count > MAX_PARTITION_IDS:
        raise RejectedError(Code.PARTITION_IDS_EXHAUSTED)
    uids, shards = _place(metadata, context, stream.name, topic.name, count)
    return Plan([ev.PartitionsAdded(stream.id, topic.id, context.now, uids, shards)])


def delete_partitions(metadata: Metadata, request: PartitionsRequest, context: PlanContext) -> Plan:
    stream, topic = metadata.find_topic(request.stream, request.topic)
    count = _checked_count(request)
    if count > len(topic.partitions):
        raise RejectedError(Code.INVALID_PARTITIONS_COUNT, str(count))
    return Plan([ev.PartitionsRemoved(stream.id, topic.id, count)])


STREAM_PLANNERS: dict[Command, Planner] = {
    Command.CREATE_STREAM: create_stream,
    Command.UPDATE_STREAM: update_stream,
    Command.DELETE_STREAM: delete_stream,
    Command.PURGE_STREAM: purge_stream,
    Command.CREATE_TOPIC: create_topic,
    Command.UPDATE_TOPIC: update_topic,
    Command.DELETE_TOPIC: delete_topic,
    Command.PURGE_TOPIC: purge_topic,
    Command.CREATE_PARTITIONS: create_partitions,
    Command.DELETE_PARTITIONS: delete_partitions,
}
