"""Who may do what: every flag of the tree against every right, as the table of commands.md 10 says."""

from dataclasses import fields

import pytest

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.permissions import check_right, may
from shardserver.errors import Code, RejectedError
from shardserver.protocol.addresses import PartitionAddress, StreamAddress, TopicAddress, UserAddress
from shardserver.protocol.body import Empty
from shardserver.protocol.messages import PollRequest
from shardserver.protocol.permissions import (
    GlobalPermissions,
    Permissions,
    StreamPermissions,
    TopicPermissions,
)
from shardserver.protocol.table import TABLE, Command, Right

# Right: flags of the server, of the stream, of the topic.
GIVEN_BY = {
    Right.SERVERS: ("manage_servers read_servers", "", ""),
    Right.READ_USERS: ("manage_users read_users", "", ""),
    Right.MANAGE_USERS: ("manage_users", "", ""),
    Right.READ_STREAMS: ("manage_streams read_streams", "", ""),
    Right.READ_STREAM: ("manage_streams read_streams", "manage_stream read_stream", ""),
    Right.MANAGE_STREAMS: ("manage_streams", "", ""),
    Right.MANAGE_STREAM: ("manage_streams", "manage_stream", ""),
    Right.READ_TOPICS: (
        "manage_streams read_streams manage_topics read_topics",
        "manage_stream read_stream manage_topics read_topics",
        "",
    ),
    Right.READ_TOPIC: (
        "manage_streams read_streams manage_topics read_topics",
        "manage_stream read_stream manage_topics read_topics",
        "manage_topic read_topic",
    ),
    Right.CREATE_TOPIC: ("manage_streams manage_topics", "manage_stream manage_topics", ""),
    Right.MANAGE_TOPIC: ("manage_streams manage_topics", "manage_stream manage_topics", "manage_topic"),
    Right.POLL: (
        "manage_streams read_streams manage_topics read_topics poll_messages",
        "manage_stream read_stream manage_topics read_topics poll_messages",
        "manage_topic read_topic poll_messages",
    ),
    Right.SEND: (
        "manage_streams manage_topics send_messages",
        "manage_stream manage_topics send_messages",
        "manage_topic send_messages",
    ),
}
STREAM, TOPIC = 3, 5
FREE = {Right.OPEN, Right.LOGIN}


def flag_names(level: type) -> list[str]:
    return [one.name for one in fields(level) if one.name != "topics"]


def trees() -> list[tuple[int, str, Permissions]]:
    """(level, flag, a tree with only that flag set, on STREAM and TOPIC)."""
    found = [(0, name, Permissions(GlobalPermissions(**{name: True}))) for name in flag_names(GlobalPermissions)]
    for name in flag_names(StreamPermissions):
        found.append((1, name, Permissions(streams={STREAM: StreamPermissions(**{name: True})})))
    for name in flag_names(TopicPermissions):
        topics = {TOPIC: TopicPermissions(**{name: True})}
        found.append((2, name, Permissions(streams={STREAM: StreamPermissions(topics=topics)})))
    return found


def test_the_expectations_name_every_right() -> None:
    assert set(GIVEN_BY) | FREE == set(Right)


@pytest.mark.parametrize("right", GIVEN_BY, ids=lambda right: right.name)
def test_a_right_is_given_by_exactly_its_flags(right: Right) -> None:
    for level, flag, tree in trees():
        expected = flag in GIVEN_BY[right][level].split()
        assert may(tree, right, STREAM, TOPIC) is expected, (level, flag)


@pytest.mark.parametrize("right", GIVEN_BY, ids=lambda right: right.name)
def test_flags_of_another_stream_or_topic_give_nothing(right: Right) -> None:
    for level, flag, tree in trees():
        if level == 0:
            assert may(tree, right, STREAM + 1, TOPIC + 1) is (flag in GIVEN_BY[right][0].split())
        else:
            assert not may(tree, right, STREAM + 1, TOPIC), flag
        if level == 2:
            assert not may(tree, right, STREAM, TOPIC + 1), flag
            assert not may(tree, right, STREAM), flag


@pytest.mark.parametrize("right", GIVEN_BY, ids=lambda right: right.name)
def test_no_tree_gives_nothing_and_a_full_one_everything(right: Right) -> None:
    full = Permissions(GlobalPermissions(**dict.fromkeys(flag_names(GlobalPermissions), True)))
    assert not may(None, right, STREAM, TOPIC)
    assert not may(Permissions(), right, STREAM, TOPIC)
    assert may(full, right, STREAM, TOPIC) and may(full, right)


def test_what_any_user_may_do_needs_no_tree() -> None:
    assert all(may(None, right) for right in FREE)


# check_right, on a replica


def replica() -> md.Metadata:
    metadata = md.Metadata()
    ev.apply(metadata, ev.StreamCreated(STREAM, "orders", 1))
    ev.apply(metadata, ev.TopicCreated(STREAM, TOPIC, "events", 1, {}, [1], [0]))
    for id, name in (md.ROOT_ID, "iggy"), (1, "alice"):
        ev.apply(metadata, ev.UserCreated(md.User(id, name, 1, "")))
    return metadata


def refused(user: int, command: Command, request: object) -> bool:
    try:
        check_right(replica(), user, TABLE[command], request)
    except RejectedError as error:
        assert error.code is Code.UNAUTHORIZED
        return True
    return False


def test_root_may_do_everything() -> None:
    for row in TABLE.values():
        check_right(replica(), md.ROOT_ID, row, Empty())


def test_a_user_without_permissions_may_do_only_what_any_user_may() -> None:
    assert refused(1, Command.GET_STATS, Empty())
    assert refused(1, Command.GET_STREAM, StreamAddress("orders"))
    assert refused(1, Command.DELETE_TOPIC, TopicAddress(STREAM, "events"))
    assert refused(1, Command.POLL_MESSAGES, PollRequest(PartitionAddress(1, 1, "orders", TOPIC, 0), 1, 0, 1, False))
    assert not refused(1, Command.GET_ME, Empty())


def test_what_is_not_there_is_left_to_the_command_to_tell() -> None:
    assert not refused(1, Command.GET_STREAM, StreamAddress("nope"))
    assert not refused(1, Command.DELETE_TOPIC, TopicAddress("orders", "nope"))
    assert not refused(1, Command.GET_OFFSET, PartitionAddress(1, 1, "nope", "events", 0))


def test_a_user_may_ask_for_himself_by_id_and_by_name() -> None:
    assert not refused(1, Command.GET_USER, UserAddress(1))
    assert not refused(1, Command.GET_USER, UserAddress("alice"))
    assert refused(1, Command.GET_USER, UserAddress(md.ROOT_ID))
    assert refused(1, Command.DELETE_USER, UserAddress(1))
