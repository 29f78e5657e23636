"""Parts of our values as rows of a vector: texts, identifiers, options, headers, and what comes several times."""

from __future__ import annotations

from dataclasses import fields
from functools import singledispatch

from shardserver.protocol import clients, groups, messages, statistics, system, tokens
from shardserver.protocol import permissions as perms
from shardserver.protocol.batch_values import Batch, Message
from shardserver.protocol.frame import Eviction, ReplyHeader, RequestHeader
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.streams import StreamHeader
from shardserver.protocol.tlv import Typed
from shardserver.protocol.topics import PartitionInfo, TopicHeader
from shardserver.protocol.users import UserHeader

Row = tuple[int, str, object]
Rows = list[Row]


def text(field: str, value: str, length_bytes: int = 1) -> Rows:
    raw = value.encode()
    return [(length_bytes, f"{field}.len", len(raw)), (len(raw), field, value)]


def identifier(field: str, value: Identifier) -> Rows:
    if isinstance(value, int):
        return [(1, f"{field}.kind", 1), (1, f"{field}.len", 4), (4, field, value)]
    return [(1, f"{field}.kind", 2), *text(field, value)]


def size_of(rows: Rows) -> int:
    return sum(row[0] for row in rows)


def shown(typed: Typed) -> object:
    return typed.value.hex() if isinstance(typed.value, bytes) else typed.value


def typed_rows(field: str, typed: Typed) -> Rows:
    length = len(typed.encode())
    return [(1, f"{field}_kind", typed.kind), (4, f"{field}_len", length), (length, field, shown(typed))]


def option_rows(field: str, options: dict[str, Typed]) -> Rows:
    rows: Rows = []
    for number, (key, value) in enumerate(options.items()):
        rows += typed_rows(f"{field}[{number}].key", Typed(2, key)) + typed_rows(f"{field}[{number}].value", value)
    return rows


def many(field: str, values: tuple) -> Rows:
    return [row for number, one in enumerate(values) for row in part_rows(one, f"{field}[{number}]")]


def stream_and_topic(value) -> Rows:
    return identifier("stream_id", value.stream) + identifier("topic_id", value.topic)


# Headers


def u128(raw: bytes) -> str:
    return f"0x{int.from_bytes(raw, 'little'):032x}"


def opening(size: int, command: int) -> Rows:
    """The first 128 bytes, of which only size and command say something."""
    zero: Rows = [(16, name, "zero") for name in ("checksum", "checksum_body", "cluster")]
    view: Rows = [(4, "view", 0), (4, "release", 0)]
    return [*zero, (4, "size", size), *view, (1, "command", command), (1, "replica", 0), (66, "reserved_frame", "zero")]


def request_header_rows(header: RequestHeader) -> Rows:
    rows = opening(header.size, 5)
    rows += [(16, "client", u128(header.client)), (16, "request_checksum", u128(header.request_checksum))]
    rows += [(8, "timestamp", header.timestamp), (8, "request", header.request), (1, "operation", header.operation)]
    rows += [(7, "operation_padding", "zero"), (8, "session", header.session), (4, "user_id", header.user_id)]
    if header.operation != 2:
        return [*rows, (60, "reserved", "zero")]
    return [*rows, (4, "reserved[0..4] = command code", header.code), (56, "reserved", "zero")]


def reply_header_rows(header: ReplyHeader) -> Rows:
    rows = opening(header.size, 8)
    rows += [(16, "request_checksum", u128(header.request_checksum)), (16, "context", u128(bytes(16)))]
    rows += [(16, "client", u128(header.client)), (8, "op", header.op), (8, "commit", header.commit)]
    rows += [(8, "timestamp", header.timestamp), (8, "request", header.request), (1, "operation", header.operation)]
    return [*rows, (7, "operation_padding", "zero"), (4, "status", header.status), (36, "reserved", "zero")]


def eviction_rows(eviction: Eviction) -> Rows:
    rows = [*opening(256, 13), (16, "client", u128(eviction.client))]
    rows += [(4, "server_protocol_version", eviction.server_protocol_version)]
    rows += [(4, "server_protocol_version_min", eviction.server_protocol_version_min)]
    return [*rows, (103, "reserved", "zero"), (1, "reason", eviction.reason)]


def result_rows(errors: list[tuple[int, int]]) -> Rows:
    rows: Rows = [(4, "result.count", len(errors))]
    for number, (index, code) in enumerate(errors):
        rows += [(4, f"result[{number}].index", index), (4, f"result[{number}].code", code)]
    return rows


# Parts that come several times, or under a name


@singledispatch
def part_rows(value, at: str) -> Rows:
    raise TypeError(value)


@part_rows.register
def _(value: int, at: str) -> Rows:
    return [(4, at, value)]


@part_rows.register
def _(value: StreamHeader, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.id", value.id), (8, f"{at}.created_at", value.created_at)]
    rows += [(4, f"{at}.topics_count", value.topics_count), (8, f"{at}.size_bytes", value.size_bytes)]
    rows += [(8, f"{at}.messages_count", value.messages_count), *text(f"{at}.name", value.name)]
    options = option_rows(f"{at}.options", value.options)
    return [*rows, (4, f"{at}.options_len", size_of(options)), *options]


@part_rows.register
def _(value: TopicHeader, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.id", value.id), (8, f"{at}.created_at", value.created_at)]
    rows += [(4, f"{at}.partitions_count", value.partitions_count), (8, f"{at}.message_expiry", value.message_expiry)]
    rows += [(1, f"{at}.compression_algorithm", value.compression_algorithm)]
    rows += [(8, f"{at}.max_topic_size", value.max_topic_size), (8, f"{at}.size_bytes", value.size_bytes)]
    rows += [(8, f"{at}.messages_count", value.messages_count), *text(f"{at}.name", value.name)]
    for kind, options in (("explicit", value.explicit), ("derived", value.derived)):
        block = option_rows(f"{at}.{kind}_options", options)
        rows += [(4, f"{at}.{kind}_options_len", size_of(block)), *block]
    return rows


@part_rows.register
def _(value: PartitionInfo, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.id", value.id), (8, f"{at}.created_at", value.created_at)]
    rows += [(4, f"{at}.segments_count", value.segments_count), (8, f"{at}.current_offset", value.current_offset)]
    return [*rows, (8, f"{at}.size_bytes", value.size_bytes), (8, f"{at}.messages_count", value.messages_count)]


@part_rows.register
def _(value: UserHeader, at: str) -> Rows:
    rows: Rows = [
        (4, f"{at}.id", value.id),
        (8, f"{at}.created_at", value.created_at),
        (1, f"{at}.status", value.status),
    ]
    options = option_rows(f"{at}.options", value.options)
    return [*rows, *text(f"{at}.username", value.username), (4, f"{at}.options_len", size_of(options)), *options]


@part_rows.register
def _(value: groups.GroupHeader, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.id", value.id), (4, f"{at}.partitions_count", value.partitions_count)]
    return [*rows, (4, f"{at}.members_count", value.members_count), *text(f"{at}.name", value.name)]


@part_rows.register
def _(value: groups.GroupMember, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.id", value.id), (4, f"{at}.partitions_count", len(value.partitions))]
    return rows + many(f"{at}.partition", value.partitions)


@part_rows.register
def _(value: clients.ClientInfo, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.client_id", value.client_id), (4, f"{at}.user_id", value.user_id)]
    rows += [(1, f"{at}.transport", value.transport), *text(f"{at}.address", value.address, 4)]
    return [*rows, (4, f"{at}.consumer_groups_count", value.groups_count)]


@part_rows.register
def _(value: tokens.TokenInfo, at: str) -> Rows:
    return [*text(f"{at}.name", value.name), (8, f"{at}.expiry_at", value.expires_at)]


@part_rows.register
def _(value: system.ClusterNode, at: str) -> Rows:
    rows = text(f"{at}.name", value.name, 4) + text(f"{at}.ip", value.ip, 4)
    rows += [(2, f"{at}.{name}_port", getattr(value, f"{name}_port")) for name in ("tcp", "quic", "http", "websocket")]
    return [*rows, (1, f"{at}.role", value.role), (1, f"{at}.status", value.status)]


@part_rows.register
def _(value: system.OptionDescription, at: str) -> Rows:
    raw = value.default.encode()
    rows = [*text(f"{at}.key", value.key), (1, f"{at}.kind", value.default.kind), (4, f"{at}.default_len", len(raw))]
    return [*rows, (len(raw), f"{at}.default", shown(value.default)), *text(f"{at}.description", value.description, 4)]


@part_rows.register
def _(value: statistics.CacheMetrics, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.{name}", getattr(value, name)) for name in ("stream_id", "topic_id", "partition_id")]
    return [
        *rows,
        (8, f"{at}.hits", value.hits),
        (8, f"{at}.misses", value.misses),
        (4, f"{at}.hit_ratio", value.hit_ratio),
    ]


@part_rows.register
def _(value: messages.Confirmation, at: str) -> Rows:
    rows: Rows = [(4, f"{at}.{name}", getattr(value, name)) for name in ("stream_id", "topic_id", "partition_id")]
    return [*rows, (8, f"{at}.base_offset", value.base_offset)]


@part_rows.register
def _(value: Message, at: str) -> Rows:
    headers: Rows = []
    for number, (key, one) in enumerate(value.user_headers):
        place = f"{at}.user_headers[{number}]"
        headers += typed_rows(f"{place}.key", key) + typed_rows(f"{place}.value", one)
    rows: Rows = [(8, f"{at}.checksum", f"0x{value.checksum:016x}"), (16, f"{at}.id", f"0x{value.id:032x}")]
    rows += [(4, f"{at}.offset_delta", value.offset_delta), (4, f"{at}.timestamp_delta", value.timestamp_delta)]
    rows += [(4, f"{at}.user_headers_length", size_of(headers)), (4, f"{at}.payload_length", len(value.payload))]
    try:
        payload = value.payload.decode()
    except UnicodeDecodeError:
        payload = value.payload.hex()
    return [*rows, (8, f"{at}.reserved", 0), (len(value.payload), f"{at}.payload", payload), *headers]


@part_rows.register
def _(value: Batch, at: str) -> Rows:
    stamps = ("partition_id", "base_offset", "base_timestamp", "origin_timestamp", "batch_length")
    rows: Rows = [(8, f"{at}.{name}", getattr(value, name)) for name in stamps]
    rows += [(8, f"{at}.batch_checksum", f"0x{value.checksum:016x}")]
    rows += [(4, f"{at}.message_count", len(value.messages)), (204, f"{at}.reserved", "zero")]
    return rows + many(f"{at}.message", value.messages)


def flag_rows(at: str, value: object) -> Rows:
    return [(1, f"{at}.{one.name}", getattr(value, one.name)) for one in fields(value) if one.name != "topics"]


def permission_rows(permissions: perms.Permissions | None) -> Rows:
    if permissions is None:
        return [(1, "has_permissions", 0)]
    rows = flag_rows("permissions.global", permissions.server)
    rows.append((1, "permissions.has_streams", bool(permissions.streams)))
    for number, (stream_id, stream) in enumerate(permissions.streams.items()):
        at = f"permissions.stream[{number}]"
        rows += [
            (4, f"{at}.stream_id", stream_id),
            *flag_rows(at, stream),
            (1, f"{at}.has_topics", bool(stream.topics)),
        ]
        for place, (topic_id, topic) in enumerate(stream.topics.items()):
            rows += [(4, f"{at}.topic[{place}].topic_id", topic_id), *flag_rows(f"{at}.topic[{place}]", topic)]
            rows.append((1, f"{at}.topic[{place}].has_next", place + 1 < len(stream.topics)))
        rows.append((1, f"{at}.has_next", number + 1 < len(permissions.streams)))
    return [(1, "has_permissions", 1), (4, "permissions_len", size_of(rows)), *rows]
