"""The table of commands (commands.md 1): one row each, with operation, permission and the codecs of both bodies.

Every command has a code of its own, which names it here. On the wire the code stands only in operation 2; any other
operation stands for one command, except 1, whose body tells the two logins apart (login.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from shardserver.protocol.addresses import (
    GroupAddress,
    PartitionAddress,
    StreamAddress,
    TopicAddress,
    UserAddress,
)
from shardserver.protocol.body import Body, Done, Empty
from shardserver.protocol.clients import ClientDetails, ClientList, GetClientRequest
from shardserver.protocol.groups import Assignment, CreateGroupRequest, GroupDetails, GroupList
from shardserver.protocol.login import LoginReply, LoginRequest
from shardserver.protocol.messages import FlushRequest, PollReply, PollRequest, SendReply, SendRequest
from shardserver.protocol.offsets import DeleteOffsetRequest, OffsetReply, StoreOffsetRequest
from shardserver.protocol.statistics import Statistics
from shardserver.protocol.streams import CreateStreamRequest, StreamDetails, StreamList, UpdateStreamRequest
from shardserver.protocol.system import (
    ClusterMetadata,
    DescribeOptionsRequest,
    OptionCatalogue,
    Snapshot,
    SnapshotRequest,
)
from shardserver.protocol.tokens import CreateTokenRequest, DeleteTokenRequest, RawToken, TokenList
from shardserver.protocol.topics import (
    CreateTopicRequest,
    DeleteSegmentsRequest,
    PartitionsRequest,
    TopicDetails,
    TopicList,
    UpdateTopicRequest,
)
from shardserver.protocol.users import (
    ChangePasswordRequest,
    CreateUserRequest,
    UpdatePermissionsRequest,
    UpdateUserRequest,
    UserDetails,
    UserList,
)

OP_REGISTER, OP_READ, OP_LOGOUT = 1, 2, 3
OP_DELETE_SEGMENTS, OP_TRUNCATE_PARTITION = 138, 68
OP_SEND = 160
# Logins of older protocols, sent as operation 2: answered by an eviction.
RETIRED_LOGIN_CODES = frozenset({38, 44})


class Command(IntEnum):
    """Commands by their code."""

    PING = 1
    GET_STATS = 10
    GET_SNAPSHOT = 11
    GET_CLUSTER_METADATA = 12
    DESCRIBE_OPTIONS = 13
    GET_ME = 20
    GET_CLIENT = 21
    GET_CLIENTS = 22
    GET_USER = 31
    GET_USERS = 32
    CREATE_USER = 33
    DELETE_USER = 34
    UPDATE_USER = 35
    UPDATE_PERMISSIONS = 36
    CHANGE_PASSWORD = 37
    LOGOUT = 39
    LOGIN = 40
    GET_TOKENS = 41
    CREATE_TOKEN = 42
    DELETE_TOKEN = 43
    LOGIN_WITH_TOKEN = 45
    POLL_MESSAGES = 100
    SEND_MESSAGES = 101
    FLUSH = 102
    GET_OFFSET = 120
    STORE_OFFSET = 121
    DELETE_OFFSET = 122
    GET_STREAM = 200
    GET_STREAMS = 201
    CREATE_STREAM = 202
    DELETE_STREAM = 203
    UPDATE_STREAM = 204
    PURGE_STREAM = 205
    GET_TOPIC = 300
    GET_TOPICS = 301
    CREATE_TOPIC = 302
    DELETE_TOPIC = 303
    UPDATE_TOPIC = 304
    PURGE_TOPIC = 305
    CREATE_PARTITIONS = 402
    DELETE_PARTITIONS = 403
    DELETE_SEGMENTS = 503
    GET_GROUP = 600
    GET_GROUPS = 601
    CREATE_GROUP = 602
    DELETE_GROUP = 603
    JOIN_GROUP = 604
    LEAVE_GROUP = 605
    SYNC_GROUP = 606


class Right(Enum):
    """What a caller needs (commands.md 10). OPEN: nothing, not even a login. LOGIN: any user."""

    OPEN = auto()
    LOGIN = auto()
    SERVERS = auto()
    READ_USERS = auto()
    MANAGE_USERS = auto()
    READ_STREAMS = auto()
    READ_STREAM = auto()
    MANAGE_STREAMS = auto()
    MANAGE_STREAM = auto()
    READ_TOPICS = auto()
    READ_TOPIC = auto()
    CREATE_TOPIC = auto()
    MANAGE_TOPIC = auto()
    POLL = auto()
    SEND = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """One command.

    request, reply: codecs of the request's body and of the reply's payload (after a result section, if there is one).
    may_be_missing: an empty payload means that there is no such thing.
    self_allowed: a user may do it to himself with Right.LOGIN.
    """

    command: Command
    operation: int
    right: Right
    request: type[Body]
    reply: type[Body] = Done
    may_be_missing: bool = False
    self_allowed: bool = False

    @property
    def has_result_section(self) -> bool:
        """Whether the body of a good reply begins with a result section (framing 5)."""
        return self.operation not in (OP_READ, OP_LOGOUT, OP_DELETE_SEGMENTS, OP_SEND)


_ROWS = (
    Row(Command.PING, OP_READ, Right.OPEN, Empty),
    Row(Command.GET_STATS, OP_READ, Right.SERVERS, Empty, Statistics),
    Row(Command.GET_SNAPSHOT, OP_READ, Right.SERVERS, SnapshotRequest, Snapshot),
    Row(Command.GET_CLUSTER_METADATA, OP_READ, Right.LOGIN, Empty, ClusterMetadata),
    Row(Command.DESCRIBE_OPTIONS, OP_READ, Right.LOGIN, DescribeOptionsRequest, OptionCatalogue),
    Row(Command.GET_ME, OP_READ, Right.LOGIN, Empty, ClientDetails),
    Row(Command.GET_CLIENT, OP_READ, Right.SERVERS, GetClientRequest, ClientDetails, may_be_missing=True),
    Row(Command.GET_CLIENTS, OP_READ, Right.SERVERS, Empty, ClientList),
    Row(Command.GET_USER, OP_READ, Right.READ_USERS, UserAddress, UserDetails, may_be_missing=True, self_allowed=True),
    Row(Command.GET_USERS, OP_READ, Right.READ_USERS, Empty, UserList),
    Row(Command.CREATE_USER, 141, Right.MANAGE_USERS, CreateUserRequest, UserDetails),
    Row(Command.DELETE_USER, 143, Right.MANAGE_USERS, UserAddress),
    Row(Command.UPDATE_USER, 142, Right.MANAGE_USERS, UpdateUserRequest),
    Row(Command.UPDATE_PERMISSIONS, 145, Right.MANAGE_USERS, UpdatePermissionsRequest),
    Row(Command.CHANGE_PASSWORD, 144, Right.MANAGE_USERS, ChangePasswordRequest, self_allowed=True),
    Row(Command.LOGOUT, OP_LOGOUT, Right.OPEN, Empty),
    Row(Command.LOGIN, OP_REGISTER, Right.OPEN, LoginRequest, LoginReply),
    Row(Command.GET_TOKENS, OP_READ, Right.LOGIN, Empty, TokenList),
    Row(Command.CREATE_TOKEN, 146, Right.LOGIN, CreateTokenRequest, RawToken),
    Row(Command.DELETE_TOKEN, 147, Right.LOGIN, DeleteTokenRequest),
    Row(Command.LOGIN_WITH_TOKEN, OP_REGISTER, Right.OPEN, LoginRequest, LoginReply),
    Row(Command.POLL_MESSAGES, OP_READ, Right.POLL, PollRequest, PollReply),
    Row(Command.SEND_MESSAGES, OP_SEND, Right.SEND, SendRequest, SendReply),
    Row(Command.FLUSH, OP_READ, Right.LOGIN, FlushRequest),
    Row(Command.GET_OFFSET, OP_READ, Right.POLL, PartitionAddress, OffsetReply, may_be_missing=True),
    Row(Command.STORE_OFFSET, 161, Right.POLL, StoreOffsetRequest),
    Row(Command.DELETE_OFFSET, 162, Right.POLL, DeleteOffsetRequest),
    Row(Command.GET_STREAM, OP_READ, Right.READ_STREAM, StreamAddress, StreamDetails, may_be_missing=True),
    Row(Command.GET_STREAMS, OP_READ, Right.READ_STREAMS, Empty, StreamList),
    Row(Command.CREATE_STREAM, 128, Right.MANAGE_STREAMS, CreateStreamRequest, StreamDetails),
    Row(Command.DELETE_STREAM, 130, Right.MANAGE_STREAM, StreamAddress),
    Row(Command.UPDATE_STREAM, 129, Right.MANAGE_STREAM, UpdateStreamRequest),
    Row(Command.PURGE_STREAM, 131, Right.MANAGE_STREAM, StreamAddress),
    Row(Command.GET_TOPIC, OP_READ, Right.READ_TOPIC, TopicAddress, TopicDetails, may_be_missing=True),
    Row(Command.GET_TOPICS, OP_READ, Right.READ_TOPICS, StreamAddress, TopicList),
    Row(Command.CREATE_TOPIC, 132, Right.CREATE_TOPIC, CreateTopicRequest, TopicDetails),
    Row(Command.DELETE_TOPIC, 134, Right.MANAGE_TOPIC, TopicAddress),
    Row(Command.UPDATE_TOPIC, 133, Right.MANAGE_TOPIC, UpdateTopicRequest),
    Row(Command.PURGE_TOPIC, 135, Right.MANAGE_TOPIC, TopicAddress),
    Row(Command.CREATE_PARTITIONS, 136, Right.MANAGE_TOPIC, PartitionsRequest),
    Row(Command.DELETE_PARTITIONS, 137, Right.MANAGE_TOPIC, PartitionsRequest),
    Row(Command.DELETE_SEGMENTS, OP_DELETE_SEGMENTS, Right.MANAGE_TOPIC, DeleteSegmentsRequest),
    Row(Command.GET_GROUP, OP_READ, Right.READ_TOPIC, GroupAddress, GroupDetails, may_be_missing=True),
    Row(Command.GET_GROUPS, OP_READ, Right.READ_TOPIC, TopicAddress, GroupList),
    Row(Command.CREATE_GROUP, 139, Right.READ_TOPIC, CreateGroupRequest, GroupDetails),
    Row(Command.DELETE_GROUP, 140, Right.READ_TOPIC, GroupAddress),
    Row(Command.JOIN_GROUP, 148, Right.READ_TOPIC, GroupAddress),
    Row(Command.LEAVE_GROUP, 149, Right.READ_TOPIC, GroupAddress),
    Row(Command.SYNC_GROUP, OP_READ, Right.LOGIN, GroupAddress, Assignment, may_be_missing=True),
)
TABLE: dict[Command, Row] = {row.command: row for row in _ROWS}

_BY_CODE: dict[int, Row] = {int(row.command): row for row in _ROWS if row.operation == OP_READ}
# The first row wins: for operation 1 that is LOGIN.
_BY_OPERATION: dict[int, Row] = {row.operation: row for row in reversed(_ROWS) if row.operation != OP_READ}


def find_row(operation: int, code: int) -> Row | None:
    """The command that a request header names; None when there is no such command. code counts for operation 2 only."""
    return _BY_CODE.get(code) if operation == OP_READ else _BY_OPERATION.get(operation)
