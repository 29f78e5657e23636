"""Who has which partition of each consumer group, and how far behind the group is there, asked over the wire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from shardserver.client.connection import Connection
from shardserver.protocol.addresses import CONSUMER_GROUP, GroupAddress, PartitionAddress, StreamAddress, TopicAddress
from shardserver.protocol.groups import GroupDetails, GroupList
from shardserver.protocol.offsets import OffsetReply, Progress
from shardserver.protocol.streams import StreamList
from shardserver.protocol.table import Command
from shardserver.protocol.topics import PartitionInfo, TopicDetails, TopicList

Row = dict[str, Any]


def read_group_lag(connection: Connection) -> list[Row]:
    """A row a group and partition, with the keys that `shardserver groups --json` prints.

    committed, end, lag: as Progress has them. Raises as Connection does; what is deleted meanwhile is left out.
    """
    streams = StreamList.decode(connection.read(Command.GET_STREAMS, b"")).streams
    return [row for stream in streams for row in _of_stream(connection, stream.id, stream.name)]


def _of_stream(connection: Connection, stream: int, name: str) -> Iterator[Row]:
    body = connection.read(Command.GET_TOPICS, StreamAddress(stream).encode())
    for topic in TopicList.decode(body).topics if body else ():
        address = TopicAddress(stream, topic.id)
        groups = GroupList.decode(connection.read(Command.GET_GROUPS, address.encode())).groups
        details = connection.read(Command.GET_TOPIC, address.encode()) if groups else b""
        if details:
            partitions = TopicDetails.decode(memoryview(details)).partitions
            for group in groups:
                for row in _of_group(connection, GroupAddress(stream, topic.id, group.id), partitions):
                    yield {"stream": name, "topic": topic.name, "group": group.name} | row


def _of_group(connection: Connection, address: GroupAddress, partitions: tuple[PartitionInfo, ...]) -> Iterator[Row]:
    body = connection.read(Command.GET_GROUP, address.encode())
    members = GroupDetails.decode(body).members if body else ()
    owners = {partition: member.id for member in members for partition in member.partitions}
    for partition in partitions:
        asked = PartitionAddress(CONSUMER_GROUP, address.group, address.stream, address.topic, partition.id)
        stored = connection.read(Command.GET_OFFSET, asked.encode())
        committed = OffsetReply.decode(stored).stored_offset if stored else None
        progress = Progress.of(committed, partition.current_offset, partition.messages_count)
        yield {"partition": partition.id, "owner": owners.get(partition.id)} | asdict(progress)
