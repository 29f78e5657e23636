"""Who may do what (commands.md 10): pure functions of a user's permission tree, a right and the place it is about.

A right is given when any of the flags that name it is set, on the server, on the stream or on the topic.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from shardserver.core.metadata import ROOT_ID, Metadata
from shardserver.errors import Code, RejectedError
from shardserver.protocol.permissions import Permissions
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.table import Right, Row


@dataclass(frozen=True, slots=True)
class Flags:
    """Names of the flags that give a right, at each level of the tree; () where that level cannot give it."""

    server: tuple[str, ...]
    stream: tuple[str, ...] = ()
    topic: tuple[str, ...] = ()


_SERVER_READS_TOPICS = ("manage_streams", "read_streams", "manage_topics", "read_topics")
_STREAM_READS_TOPICS = ("manage_stream", "read_stream", "manage_topics", "read_topics")
_SERVER_CHANGES_TOPICS = ("manage_streams", "manage_topics")
_STREAM_CHANGES_TOPICS = ("manage_stream", "manage_topics")

FLAGS: dict[Right, Flags] = {
    Right.SERVERS: Flags(("manage_servers", "read_servers")),
    Right.READ_USERS: Flags(("manage_users", "read_users")),
    Right.MANAGE_USERS: Flags(("manage_users",)),
    Right.READ_STREAMS: Flags(("manage_streams", "read_streams")),
    Right.READ_STREAM: Flags(("manage_streams", "read_streams"), ("manage_stream", "read_stream")),
    Right.MANAGE_STREAMS: Flags(("manage_streams",)),
    Right.MANAGE_STREAM: Flags(("manage_streams",), ("manage_stream",)),
    Right.READ_TOPICS: Flags(_SERVER_READS_TOPICS, _STREAM_READS_TOPICS),
    Right.READ_TOPIC: Flags(_SERVER_READS_TOPICS, _STREAM_READS_TOPICS, ("manage_topic", "read_topic")),
    Right.CREATE_TOPIC: Flags(_SERVER_CHANGES_TOPICS, _STREAM_CHANGES_TOPICS),
    Right.MANAGE_TOPIC: Flags(_SERVER_CHANGES_TOPICS, _STREAM_CHANGES_TOPICS, ("manage_topic",)),
    Right.POLL: Flags(
        (*_SERVER_READS_TOPICS, "poll_messages"),
        (*_STREAM_READS_TOPICS, "poll_messages"),
        ("manage_topic", "read_topic", "poll_messages"),
    ),
    Right.SEND: Flags(
        (*_SERVER_CHANGES_TOPICS, "send_messages"),
        (*_STREAM_CHANGES_TOPICS, "send_messages"),
        ("manage_topic", "send_messages"),
    ),
}


def _any_set(level: object, names: tuple[str, ...]) -> bool:
    return any(attrgetter(name)(level) for name in names)


def may(permissions: Permissions | None, right: Right, stream: int | None = None, topic: int | None = None) -> bool:
    """Does this tree give the right, on this stream and topic (by what it names them)? None: the user has none.

    Not for root, who needs no tree.
    """
    if right in (Right.OPEN, Right.LOGIN):
        return True
    if permissions is None:
        return False
    flags = FLAGS[right]
    if _any_set(permissions.server, flags.server):
        return True
    on_stream = None if stream is None else permissions.streams.get(stream)
    if on_stream is None:
        return False
    if _any_set(on_stream, flags.stream):
        return True
    on_topic = None if topic is None else on_stream.topics.get(topic)
    return on_topic is not None and _any_set(on_topic, flags.topic)


def check_right(metadata: Metadata, user_id: int, row: Row, request: Any) -> None:
    """Raises RejectedError(41) when the user may not do this. Root may do everything.

    A stream, topic or user that is not there is told by the command itself, before a missing right (commands.md): it
    passes.
    """
    if user_id == ROOT_ID or row.right in (Right.OPEN, Right.LOGIN):
        return
    if row.self_allowed and _is_user(metadata, user_id, request.user):
        return
    about = getattr(request, "user", None)
    if about is not None and metadata.find_user(about) is None:
        return
    place = getattr(request, "address", request)
    try:
        stream, topic = _uids(metadata, getattr(place, "stream", None), getattr(place, "topic", None))
    except RejectedError:
        return
    who = metadata.users.get(user_id)
    if not may(None if who is None else who.permissions, row.right, stream, topic):
        raise RejectedError(Code.UNAUTHORIZED, f"user {user_id}, {row.command.name.lower()}")


def manages_topic(metadata: Metadata, user_id: int, place: Any) -> bool:
    """place: names a stream and a topic that are there."""
    user = metadata.users.get(user_id)
    if user_id == ROOT_ID or user is None:
        return user_id == ROOT_ID
    return may(user.permissions, Right.MANAGE_TOPIC, *_uids(metadata, place.stream, place.topic))


def _is_user(metadata: Metadata, user_id: int, identifier: Identifier) -> bool:
    user = metadata.find_user(identifier)
    return user is not None and user.id == user_id


def _uids(metadata: Metadata, stream: Identifier | None, topic: Identifier | None) -> tuple[int | None, int | None]:
    if stream is None:
        return None, None
    if topic is None:
        return metadata.find_stream(stream).uid, None
    found_stream, found_topic = metadata.find_topic(stream, topic)
    return found_stream.uid, found_topic.uid
