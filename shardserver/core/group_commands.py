"""Consumer groups that exist: as metadata_commands.py. Who is in them: groups/."""

from __future__ import annotations

from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Group, Metadata, Topic
from shardserver.core.planning import Plan, PlanContext, Planner
from shardserver.errors import Code, RejectedError
from shardserver.protocol.addresses import GroupAddress
from shardserver.protocol.groups import CreateGroupRequest, GroupDetails, GroupHeader
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.table import Command


def find_group(topic: Topic, identifier: Identifier) -> Group:
    """Raises RejectedError(5000)."""
    for group in topic.groups.values():
        if group.id == identifier if isinstance(identifier, int) else group.name == identifier:
            return group
    raise RejectedError(Code.GROUP_NOT_FOUND, f"group {identifier!r}")


def create_group(metadata: Metadata, request: CreateGroupRequest, context: PlanContext) -> Plan:
    stream, topic = metadata.find_topic(request.stream, request.topic)
    if any(group.name == request.name for group in topic.groups.values()):
        raise RejectedError(Code.GROUP_NAME_ALREADY_EXISTS, request.name)
    number = topic.next_group_id
    header = GroupHeader(number, len(topic.partitions), 0, request.name)
    event = ev.GroupCreated(stream.id, topic.id, number, request.name, context.now)
    return Plan([event], GroupDetails(header, ()).encode())


def delete_group(metadata: Metadata, request: GroupAddress, context: PlanContext) -> Plan:
    stream, topic = metadata.find_topic(request.stream, request.topic)
    return Plan([ev.GroupDeleted(stream.id, topic.id, find_group(topic, request.group).id)])


GROUP_PLANNERS: dict[Command, Planner] = {
    Command.CREATE_GROUP: create_group,
    Command.DELETE_GROUP: delete_group,
}
