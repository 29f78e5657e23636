"""Reads of consumer groups, and joining and leaving them. As handlers.py."""

from __future__ import annotations

from shardserver.core.context import ShardContext
from shardserver.core.group_commands import find_group
from shardserver.core.groups.coordinator import GroupKey
from shardserver.core.handlers import Buffers
from shardserver.core.metadata import Group, Topic
from shardserver.core.sessions import Connection
from shardserver.errors import RejectedError
from shardserver.protocol.addresses import GroupAddress, TopicAddress
from shardserver.protocol.groups import Assignment, GroupDetails, GroupHeader, GroupList, GroupMember


def _resolve(context: ShardContext, request: GroupAddress) -> tuple[Topic, Group, GroupKey]:
    """Raises RejectedError 1009, 2010, 5000."""
    stream, topic = context.metadata.find_topic(request.stream, request.topic)
    group = find_group(topic, request.group)
    return topic, group, GroupKey(stream.id, topic.id, topic.uid, group.id)


async def get_group(context: ShardContext, connection: Connection, request: GroupAddress) -> Buffers:
    context.metadata.find_topic(request.stream, request.topic)
    try:
        topic, group, key = _resolve(context, request)
    except RejectedError:  # there is no such group
        return []
    rows = (await context.groups.members([key]))[key]
    header = GroupHeader(group.id, len(topic.partitions), len(rows), group.name)
    return [GroupDetails(header, tuple(GroupMember(number, tuple(owned)) for number, owned in rows)).encode()]


async def get_groups(context: ShardContext, connection: Connection, request: TopicAddress) -> Buffers:
    stream, topic = context.metadata.find_topic(request.stream, request.topic)
    keys = {group.id: GroupKey(stream.id, topic.id, topic.uid, group.id) for group in topic.groups.values()}
    members = await context.groups.members(list(keys.values()))
    count = len(topic.partitions)
    headers = [
        GroupHeader(group.id, count, len(members[keys[group.id]]), group.name) for group in topic.groups.values()
    ]
    return [GroupList(tuple(headers)).encode()]


async def sync_group(context: ShardContext, connection: Connection, request: GroupAddress) -> Buffers:
    """An empty body for whoever is no member, whatever is not there."""
    try:
        _, _, key = _resolve(context, request)
    except RejectedError:
        return []
    found = await context.groups.sync(connection, key)
    return [] if found is None else [Assignment(found[0], tuple(found[1])).encode()]


async def join_group(context: ShardContext, connection: Connection, request: GroupAddress) -> None:
    _, _, key = _resolve(context, request)
    await context.groups.join(connection, key)


async def leave_group(context: ShardContext, connection: Connection, request: GroupAddress) -> None:
    _, _, key = _resolve(context, request)
    await context.groups.leave(connection, key)
