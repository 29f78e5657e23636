"""What an operator asks of consumer groups: who has which partition, and how far behind the group is there."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from shardserver.core.calls import OffsetCall
from shardserver.core.groups.access import GroupAccess
from shardserver.core.groups.coordinator import GroupKey
from shardserver.core.metadata import Metadata, Partition
from shardserver.core.shards import Shards
from shardserver.protocol.addresses import CONSUMER_GROUP
from shardserver.protocol.offsets import Progress

Row = dict[str, Any]


async def report_groups(metadata: Metadata, shards: Shards, access: GroupAccess) -> list[Row]:
    """A row for each group and partition, with the keys of Progress.

    Raises ShardServerError: a shard is down, or a partition has just gone.
    """
    found = {
        GroupKey(stream.id, topic.id, topic.uid, group.id): (stream, topic, group)
        for stream in metadata.streams.values()
        for topic in stream.topics.values()
        for group in topic.groups.values()
    }
    owners = await access.owners(list(found))
    asked = [
        _row(shards, key.group_id, partition, _owner(owners[key], partition.id))
        for key, (_, topic, _) in found.items()
        for partition in topic.partitions
    ]
    names = [
        {"stream": stream.name, "topic": topic.name, "group": group.name}
        for stream, topic, group in found.values()
        for _ in topic.partitions
    ]
    return [named | row for named, row in zip(names, await asyncio.gather(*asked), strict=True)]


def _owner(owners: list[int | None], partition: int) -> int | None:
    return owners[partition] if partition < len(owners) else None


async def _row(shards: Shards, group: int, partition: Partition, owner: int | None) -> Row:
    _, committed = await shards.get_offset(partition, OffsetCall(partition.uid, CONSUMER_GROUP, group))
    _, _, current, _, messages = (await shards.figures([partition]))[partition.uid]
    return {"partition": partition.id, "owner": owner} | asdict(Progress.of(committed, current, messages))
