"""Every command with every kind of permission set, against the table of server-behaviour 14 read naively, as text."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.access import by_uid
from shardserver.core.permissions import check_right
from shardserver.errors import Code, RejectedError
from shardserver.protocol.addresses import PartitionAddress, StreamAddress, TopicAddress, UserAddress
from shardserver.protocol.messages import PollRequest
from shardserver.protocol.permissions import GlobalPermissions, Permissions, StreamPermissions, TopicPermissions
from shardserver.protocol.table import TABLE, Command

# One row differs: who is no member gets an empty answer to SYNC_GROUP, whatever the rights (commands 7).
# Commands | flags of the server | of the stream | of the topic. "*": any user; "own": one's own user needs none.
RULES = """
PING LOGIN LOGIN_WITH_TOKEN LOGOUT | * | |
GET_ME GET_CLUSTER_METADATA DESCRIBE_OPTIONS GET_TOKENS CREATE_TOKEN DELETE_TOKEN SYNC_GROUP | * | |
GET_STATS GET_CLIENTS GET_CLIENT GET_SNAPSHOT | manage_servers read_servers | |
GET_USERS | manage_users read_users | |
GET_USER | manage_users read_users own | |
CREATE_USER UPDATE_USER DELETE_USER UPDATE_PERMISSIONS | manage_users | |
CHANGE_PASSWORD | manage_users own | |
GET_STREAMS | manage_streams read_streams | |
GET_STREAM | manage_streams read_streams | manage_stream read_stream |
CREATE_STREAM | manage_streams | |
UPDATE_STREAM DELETE_STREAM PURGE_STREAM | manage_streams | manage_stream |
GET_TOPICS | manage_streams read_streams manage_topics read_topics | manage_stream read_stream manage_topics read_topics |
GET_TOPIC CREATE_GROUP DELETE_GROUP GET_GROUP GET_GROUPS JOIN_GROUP LEAVE_GROUP | manage_streams read_streams manage_topics read_topics | manage_stream read_stream manage_topics read_topics | manage_topic read_topic
CREATE_TOPIC | manage_streams manage_topics | manage_stream manage_topics |
UPDATE_TOPIC DELETE_TOPIC PURGE_TOPIC CREATE_PARTITIONS DELETE_PARTITIONS DELETE_SEGMENTS | manage_streams manage_topics | manage_stream manage_topics | manage_topic
POLL_MESSAGES GET_OFFSET STORE_OFFSET DELETE_OFFSET | poll_messages manage_topics read_topics manage_streams read_streams | poll_messages manage_stream read_stream manage_topics read_topics | poll_messages manage_topic read_topic
SEND_MESSAGES | send_messages manage_streams manage_topics | send_messages manage_stream manage_topics | send_messages manage_topic
"""  # noqa: E501 - rows of a table
STREAM, TOPIC, USER, OTHER = 3, 5, 1, 2


def table() -> dict[str, tuple[set[str], set[str], set[str]]]:
    found = {}
    for line in RULES.strip().splitlines():
        commands, *levels = line.split("|")
        sets = [set(level.split()) for level in levels]
        for command in commands.split():
            found[command] = (sets[0], sets[1], sets[2])
    return found


EXPECTED = table()
# Not in the table: peers refuse them whatever the rights, as a retired command and as our own.
LEFT_OUT = {"FLUSH"}


class Asked:
    """A request about these places, as check_right looks at one."""

    def __init__(self, **places: Any) -> None:
        for name, value in places.items():
            setattr(self, name, value)


def request_of(command: Command, user: int) -> Any:
    """On STREAM and TOPIC, or about a user."""
    row = TABLE[command]
    address = PartitionAddress(1, 1, STREAM, TOPIC, 0)
    if command is Command.POLL_MESSAGES:
        return PollRequest(address, 1, 0, 1, False)
    if row.request in (UserAddress,) or "user" in getattr(row.request, "__slots__", ()):
        return UserAddress(user)
    if row.request is StreamAddress or command in (Command.UPDATE_STREAM, Command.CREATE_TOPIC, Command.GET_TOPICS):
        return StreamAddress(STREAM)
    if command.name.startswith(("GET_STREAMS", "CREATE_STREAM")) or not EXPECTED[command.name][1]:
        return Asked()
    return TopicAddress(STREAM, TOPIC)


def allowed(command: Command, tree: Permissions | None, user: int) -> bool:
    """The table, read line by line."""
    on_server, on_stream, on_topic = EXPECTED[command.name]
    if "*" in on_server or ("own" in on_server and user == USER):
        return True
    if tree is None:
        return False
    if any(getattr(tree.server, flag) for flag in on_server - {"own"}):
        return True
    stream = tree.streams.get(STREAM)
    if stream is None:
        return False
    topic = stream.topics.get(TOPIC)
    return any(getattr(stream, flag) for flag in on_stream) or (
        topic is not None and any(getattr(topic, flag) for flag in on_topic)
    )


def replica(tree: Permissions | None) -> md.Metadata:
    metadata = md.Metadata()
    for stream in STREAM, STREAM + 1:
        ev.apply(metadata, ev.StreamCreated(stream, f"s{stream}", 1))
        for topic in TOPIC, TOPIC + 1:
            ev.apply(metadata, ev.TopicCreated(stream, topic, f"t{topic}", 1, {}, [], []))
    for id, name in (USER, "alice"), (OTHER, "bob"):
        ev.apply(metadata, ev.UserCreated(md.User(id, name, 1, "")))
    ev.apply(metadata, ev.PermissionsSet(USER, by_uid(metadata, tree)))
    return metadata


def answered(metadata: md.Metadata, command: Command, user: int) -> bool:
    try:
        check_right(metadata, USER, TABLE[command], request_of(command, user))
    except RejectedError as error:
        assert error.code is Code.UNAUTHORIZED
        return False
    return True


def compare(tree: Permissions | None) -> int:
    """How many combinations were looked at."""
    metadata = replica(tree)
    asked = [(command, user) for command in COMMANDS for user in (USER, OTHER)]
    for command, user in asked:
        assert answered(metadata, command, user) is allowed(command, tree, user), (command.name, user, tree)
    return len(asked)


COMMANDS = [command for command in TABLE if command.name in EXPECTED]


def test_the_table_names_every_command() -> None:
    assert {command.name for command in TABLE} - LEFT_OUT == set(EXPECTED)


def flags_of(level: type, count: int) -> list[Any]:
    """All settings of the flags."""
    return [level(*one) for one in itertools.product((False, True), repeat=count)]


def single_levels() -> list[Permissions | None]:
    """Every set of flags on one level alone: 1024 on the server, 64 on the stream, 16 on the topic; elsewhere too."""
    found: list[Permissions | None] = [None, Permissions()]
    found += [Permissions(one) for one in flags_of(GlobalPermissions, 10)]
    for stream in STREAM, STREAM + 1:
        found += [Permissions(streams={stream: one}) for one in flags_of(StreamPermissions, 6)]
        for topic in TOPIC, TOPIC + 1:
            topics = [{topic: one} for one in flags_of(TopicPermissions, 4)]
            found += [Permissions(streams={stream: StreamPermissions(topics=one)}) for one in topics]
    return found


def test_every_command_with_every_set_of_one_level(record_property: Any) -> None:
    combinations = sum(map(compare, single_levels()))
    record_property("combinations", combinations)
    print(f"{combinations} combinations of command, user and permission set")
    assert combinations > 90_000


FLAG = st.booleans()
TOPICS = st.dictionaries(
    st.sampled_from([TOPIC, TOPIC + 1, 99]), st.builds(TopicPermissions, FLAG, FLAG, FLAG, FLAG), max_size=3
)
STREAMS = st.dictionaries(
    st.sampled_from([STREAM, STREAM + 1, 99]),
    st.builds(StreamPermissions, FLAG, FLAG, FLAG, FLAG, FLAG, FLAG, TOPICS),
    max_size=3,
)
SERVER = st.builds(GlobalPermissions, *[st.sampled_from([False, False, False, True])] * 10)


@settings(max_examples=150, deadline=None)
@given(st.none() | st.builds(Permissions, SERVER, STREAMS))
def test_every_command_with_any_tree(tree: Permissions | None) -> None:
    compare(tree)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_root_needs_no_tree(command: Command) -> None:
    check_right(replica(None), md.ROOT_ID, TABLE[command], request_of(command, OTHER))
