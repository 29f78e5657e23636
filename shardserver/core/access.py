"""Permission trees between the wire and the replica: there by ids that are given again, here by uids that never are."""

from __future__ import annotations

from collections.abc import Collection

from shardserver.core.metadata import Metadata, Stream
from shardserver.protocol.permissions import Permissions, StreamPermissions, TopicPermissions

# Added to an id that named nothing when it was told: no uid is so high, so that it gives no right, then or ever.
NOTHING = 1 << 62


def by_uid(metadata: Metadata, told: Permissions | None) -> Permissions | None:
    """What a client names by ids. What it says of a stream or topic that is not there is kept for replies alone."""
    if told is None:
        return None
    streams: dict[int, StreamPermissions] = {}
    for stream_id, one in told.streams.items():
        stream = metadata.streams.get(stream_id)
        uids = {} if stream is None else {topic.id: topic.uid for topic in stream.topics.values()}
        topics = {uids.get(id, NOTHING + id): topic for id, topic in one.topics.items()}
        streams[NOTHING + stream_id if stream is None else stream.uid] = _with_topics(one, topics)
    return Permissions(told.server, streams)


def by_id(metadata: Metadata, kept: Permissions | None) -> Permissions | None:
    """What a reply tells: in the order in which it was told, without what is gone."""
    if kept is None:
        return None
    there = {stream.uid: stream for stream in metadata.streams.values()}
    streams: dict[int, StreamPermissions] = {}
    for uid, one in kept.streams.items():
        stream = there.get(uid)
        id = _told_id(uid, metadata.streams) if stream is None else stream.id
        if id is not None:
            streams[id] = _with_topics(one, _topics_by_id(stream, one))
    return Permissions(kept.server, streams)


def _topics_by_id(stream: Stream | None, one: StreamPermissions) -> dict[int, TopicPermissions]:
    topics = {} if stream is None else stream.topics
    ids = {topic.uid: topic.id for topic in topics.values()}
    found = {uid: ids[uid] if uid in ids else _told_id(uid, topics) for uid in one.topics}
    return {id: one.topics[uid] for uid, id in found.items() if id is not None}


def _told_id(uid: int, there: Collection[int]) -> int | None:
    """Of what named nothing when it was told. None: it is gone, or there is another one with that id by now."""
    return uid - NOTHING if uid >= NOTHING and uid - NOTHING not in there else None


def _with_topics(one: StreamPermissions, topics: dict[int, TopicPermissions]) -> StreamPermissions:
    return StreamPermissions(
        one.manage_stream, one.read_stream, one.manage_topics, one.read_topics, one.poll_messages, one.send_messages,
        topics,
    )  # fmt: skip
