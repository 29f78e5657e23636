"""Builders of metadata for tests: a replica that is changed by events alone."""

from __future__ import annotations

from collections.abc import Sequence

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata


def make_metadata(topics: dict[str, Sequence[int]]) -> Metadata:
    """`stream/topic` -> the shards of its partitions. Ids and uids count up in this order."""
    metadata = Metadata()
    for path, shards in topics.items():
        add_topic(metadata, path, shards)
    return metadata


def add_topic(metadata: Metadata, path: str, shards: Sequence[int]) -> md.Topic:
    stream_name, topic_name = path.split("/")
    if stream_name not in metadata.stream_ids:
        ev.apply(metadata, ev.StreamCreated(len(metadata.streams), stream_name, 1))
    stream = metadata.find_stream(stream_name)
    uids = list(range(metadata.next_uid, metadata.next_uid + len(shards)))
    number = len(stream.topics)
    ev.apply(metadata, ev.TopicCreated(stream.id, number, topic_name, 1, {}, uids, list(shards)))
    return stream.topics[number]


def shards_of(metadata: Metadata) -> dict[int, int]:
    """uid -> shard."""
    return {partition.uid: partition.shard for _, partition in metadata.live_partitions()}


def counts_of(metadata: Metadata, shards: int) -> list[int]:
    """Live partitions of each shard."""
    places = list(shards_of(metadata).values())
    return [places.count(shard) for shard in range(shards)]
