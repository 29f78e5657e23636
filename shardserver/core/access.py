"""Permission trees between the wire and the replica: there by ids that are given again, here by uids that never are."""

from __future__ import annotations

from shardserver.core.metadata import Metadata
from shardserver.protocol.permissions import Permissions, StreamPermissions, TopicPermissions


def by_uid(metadata: Metadata, told: Permissions | None) -> Permissions | None:
    """What a client names by ids. What it says of a stream or topic that is not there is dropped, for good."""
    if told is None:
        return None
    streams: dict[int, StreamPermissions] = {}
    for stream_id, one in told.streams.items():
        stream = metadata.streams.get(stream_id)
        if stream is not None:
            topics = {stream.topics[id].uid: topic for id, topic in one.topics.items() if id in stream.topics}
            streams[stream.uid] = _with_topics(one, topics)
    return Permissions(told.server, streams)


def by_id(metadata: Metadata, kept: Permissions | None) -> Permissions | None:
    """What a reply tells: of the streams and topics that are there."""
    if kept is None:
        return None
    streams: dict[int, StreamPermissions] = {}
    for stream in metadata.streams.values():
        one = kept.streams.get(stream.uid)
        if one is not None:
            topics = {topic.id: one.topics[topic.uid] for topic in stream.topics.values() if topic.uid in one.topics}
            streams[stream.id] = _with_topics(one, topics)
    return Permissions(kept.server, streams)


def _with_topics(one: StreamPermissions, topics: dict[int, TopicPermissions]) -> StreamPermissions:
    return StreamPermissions(
        one.manage_stream, one.read_stream, one.manage_topics, one.read_topics, one.poll_messages, one.send_messages,
        topics,
    )  # fmt: skip
