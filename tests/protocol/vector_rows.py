"""Bodies of requests and replies, told as the lists in tests/vectors: (length in bytes, field, value) in wire order."""

from __future__ import annotations

from dataclasses import fields
from functools import singledispatch

from shardserver.protocol import addresses, clients, groups, login, messages, offsets, statistics, system, tokens
from shardserver.protocol.batch_values import decode_batches
from shardserver.protocol.body import Done, Empty
from shardserver.protocol.streams import CreateStreamRequest, StreamDetails, StreamList, UpdateStreamRequest
from shardserver.protocol.topics import (
    CreateTopicRequest,
    DeleteSegmentsRequest,
    PartitionsRequest,
    TopicDetails,
    TopicList,
    UpdateTopicRequest,
)
from shardserver.protocol.users import (
    ChangePasswordRequest,
    CreateUserRequest,
    UpdatePermissionsRequest,
    UpdateUserRequest,
    UserDetails,
    UserList,
)
from tests.protocol.vector_parts import (
    Rows,
    identifier,
    many,
    option_rows,
    part_rows,
    permission_rows,
    size_of,
    stream_and_topic,
    text,
)


@singledispatch
def body_rows(value) -> Rows:
    raise TypeError(value)


@body_rows.register(Empty)
@body_rows.register(Done)
def _(value) -> Rows:
    return []


@body_rows.register
def _(value: addresses.StreamAddress) -> Rows:
    return identifier("stream_id", value.stream)


@body_rows.register
def _(value: addresses.TopicAddress) -> Rows:
    return stream_and_topic(value)


@body_rows.register
def _(value: addresses.GroupAddress) -> Rows:
    return stream_and_topic(value) + identifier("group_id", value.group)


@body_rows.register
def _(value: addresses.UserAddress) -> Rows:
    return identifier("user_id", value.user)


@body_rows.register
def _(value: addresses.PartitionAddress) -> Rows:
    rows: Rows = [(1, "consumer.kind", value.kind), *identifier("consumer.id", value.consumer)]
    rows += stream_and_topic(value)
    return [*rows, (1, "partition_flag", value.partition is not None), (4, "partition_id", value.partition or 0)]


@body_rows.register
def _(value: login.LoginRequest) -> Rows:
    rows: Rows = [(4, "protocol_version", value.protocol_version)]
    rows += text("sdk_name", value.sdk_name) + text("sdk_version", value.sdk_version)
    if value.username is None:
        rows += text("token", value.password)
    else:
        rows += text("username", value.username) + text("password", value.password)
    return [*rows, (4, "client_context.len", len(value.context))]


@body_rows.register
def _(value: login.LoginReply) -> Rows:
    rows: Rows = [(4, "user_id", value.user_id), (8, "session", value.session)]
    return [
        *rows,
        (4, "server_protocol_version", value.protocol_version),
        *text("server_version", value.server_version),
    ]


@body_rows.register
def _(value: system.ClusterMetadata) -> Rows:
    return [*text("cluster_name", value.name, 4), (4, "nodes_count", len(value.nodes)), *many("node", value.nodes)]


@body_rows.register
def _(value: system.DescribeOptionsRequest) -> Rows:
    return [(1, "scope", value.scope)]


@body_rows.register
def _(value: system.OptionCatalogue) -> Rows:
    return [(4, "count", len(value.options)), *many("option", value.options)]


@body_rows.register
def _(value: system.SnapshotRequest) -> Rows:
    types: Rows = [(1, f"type[{number}]", one) for number, one in enumerate(value.types)]
    return [(1, "compression", value.compression), (1, "types_count", len(value.types)), *types]


@body_rows.register
def _(value: system.Snapshot) -> Rows:
    return [(len(value.archive), "zip archive", value.archive[:32].hex() + "...")]


@body_rows.register
def _(value: statistics.Statistics) -> Rows:
    names = {"server_version": "iggy_server_version", "server_semver": "iggy_server_semver"}
    wide = {"memory_usage", "total_memory", "available_memory", "run_time", "start_time", "read_bytes", "written_bytes"}
    wide |= {"messages_size_bytes", "messages_count", "free_disk_space", "total_disk_space"}
    rows: Rows = []
    for one in fields(value):
        content, name = getattr(value, one.name), names.get(one.name, one.name)
        if isinstance(content, str):
            rows += text(name, content, 4)
        elif isinstance(content, tuple):
            rows += [(4, "cache_metrics_count", len(content)), *many("cache", content)]
        else:
            rows.append((8 if name in wide else 4, name, content))
    return rows


@body_rows.register
def _(value: clients.GetClientRequest) -> Rows:
    return [(4, "client_id", value.client_id)]


@body_rows.register
def _(value: clients.ClientDetails) -> Rows:
    assert value.memberships == ()  # no vector has one: test_codecs.py
    return part_rows(value.info, "client")


@body_rows.register
def _(value: clients.ClientList) -> Rows:
    return many("client", value.clients)


@body_rows.register
def _(value: CreateStreamRequest) -> Rows:
    return text("name", value.name) + option_rows("options", value.options)


@body_rows.register
def _(value: UpdateStreamRequest) -> Rows:
    return identifier("stream_id", value.stream) + text("name", value.name) + option_rows("options", value.options)


@body_rows.register
def _(value: StreamDetails) -> Rows:
    return part_rows(value.header, "stream") + many("topic", value.topics)


@body_rows.register
def _(value: StreamList) -> Rows:
    return many("stream", value.streams)


@body_rows.register
def _(value: CreateTopicRequest) -> Rows:
    rows: Rows = [*identifier("stream_id", value.stream), (4, "partitions_count", value.partitions_count)]
    return rows + text("name", value.name) + option_rows("options", value.options)


@body_rows.register
def _(value: UpdateTopicRequest) -> Rows:
    return stream_and_topic(value) + text("name", value.name) + option_rows("options", value.options)


@body_rows.register
def _(value: PartitionsRequest) -> Rows:
    return [*stream_and_topic(value), (4, "partitions_count", value.count)]


@body_rows.register
def _(value: DeleteSegmentsRequest) -> Rows:
    return [*stream_and_topic(value), (4, "partition_id", value.partition), (4, "segments_count", value.count)]


@body_rows.register
def _(value: TopicDetails) -> Rows:
    return part_rows(value.header, "topic") + many("partition", value.partitions)


@body_rows.register
def _(value: TopicList) -> Rows:
    return [(4, "topics_count", len(value.topics)), *many("topic", value.topics)]


@body_rows.register
def _(value: CreateUserRequest) -> Rows:
    rows = [*text("username", value.username), *text("password", value.password), (1, "status", value.status)]
    return rows + permission_rows(value.permissions) + option_rows("options", value.options)


@body_rows.register
def _(value: UpdateUserRequest) -> Rows:
    rows = identifier("user_id", value.user)
    rows += [(1, "has_username", value.username is not None)]
    rows += text("username", value.username) if value.username is not None else []
    rows += [(1, "has_status", value.status is not None)]
    rows += [(1, "status", value.status)] if value.status is not None else []
    return rows + option_rows("options", value.options)


@body_rows.register
def _(value: UpdatePermissionsRequest) -> Rows:
    return identifier("user_id", value.user) + permission_rows(value.permissions)


@body_rows.register
def _(value: ChangePasswordRequest) -> Rows:
    passwords = text("current_password", value.current) + text("new_password", value.new)
    return identifier("user_id", value.user) + passwords


@body_rows.register
def _(value: UserDetails) -> Rows:
    padding: Rows = [(3, "padding", "000000")] if value.permissions is None else []
    return part_rows(value.header, "user") + permission_rows(value.permissions) + padding


@body_rows.register
def _(value: UserList) -> Rows:
    return many("user", value.users)


@body_rows.register
def _(value: tokens.CreateTokenRequest) -> Rows:
    return [*text("name", value.name), (8, "expiry", value.expiry)]


@body_rows.register
def _(value: tokens.DeleteTokenRequest) -> Rows:
    return text("name", value.name)


@body_rows.register
def _(value: tokens.RawToken) -> Rows:
    return text("token", value.token)


@body_rows.register
def _(value: tokens.TokenList) -> Rows:
    return many("token", value.tokens)


@body_rows.register
def _(value: groups.CreateGroupRequest) -> Rows:
    return stream_and_topic(value) + text("name", value.name)


@body_rows.register
def _(value: groups.GroupDetails) -> Rows:
    return part_rows(value.header, "group") + many("member", value.members)


@body_rows.register
def _(value: groups.GroupList) -> Rows:
    return many("group", value.groups)


@body_rows.register
def _(value: groups.Assignment) -> Rows:
    rows: Rows = [(8, "generation", value.generation), (4, "partitions_count", len(value.partitions))]
    return rows + many("partition", value.partitions)


def partitioning_rows(value: messages.SendRequest) -> Rows:
    rows: Rows = [(1, "partitioning.kind", value.kind), (1, "partitioning.len", len(value.value))]
    if value.kind == messages.KIND_PARTITION:
        rows.append((4, "partitioning.partition_id", int.from_bytes(value.value, "little")))
    if value.kind == messages.KIND_KEY:
        rows.append((len(value.value), "partitioning.key", value.value.hex()))
    return rows


@body_rows.register
def _(value: messages.SendRequest) -> Rows:
    rows: Rows = [*stream_and_topic(value), *partitioning_rows(value), (4, "messages_count", value.count)]
    return [(4, "metadata_length", size_of(rows)), *rows, *many("batch", decode_batches(value.batch))]


@body_rows.register
def _(value: messages.SendReply) -> Rows:
    return [(4, "confirmations_count", len(value.confirmations)), *many("confirmation", value.confirmations)]


@body_rows.register
def _(value: messages.PollRequest) -> Rows:
    rows = [*body_rows(value.address), (1, "strategy.kind", value.strategy), (8, "strategy.value", value.value)]
    return [*rows, (4, "count", value.count), (1, "auto_commit", value.auto_commit)]


@body_rows.register
def _(value: messages.PollReply) -> Rows:
    rows: Rows = [(4, "partition_id", value.partition), (8, "current_offset", value.current_offset)]
    return [*rows, (4, "messages_count", value.count), *many("record", decode_batches(value.batches))]


@body_rows.register
def _(value: messages.FlushRequest) -> Rows:
    return [*stream_and_topic(value), (4, "partition_id", value.partition), (1, "fsync", value.sync)]


@body_rows.register
def _(value: offsets.StoreOffsetRequest) -> Rows:
    return [*body_rows(value.address), (8, "offset", value.offset), (1, "ack", value.ack)]


@body_rows.register
def _(value: offsets.DeleteOffsetRequest) -> Rows:
    return [*body_rows(value.address), (1, "ack", value.ack)]


@body_rows.register
def _(value: offsets.OffsetReply) -> Rows:
    rows: Rows = [(4, "partition_id", value.partition), (8, "current_offset", value.current_offset)]
    return [*rows, (8, "stored_offset", value.stored_offset)]
