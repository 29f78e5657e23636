"""What no vector shows: bytes written by hand from commands.md, limits and their codes, bytes after the last field."""

import pytest

from shardserver.errors import Code, RejectedError
from shardserver.protocol import primitives as wire
from shardserver.protocol.addresses import GroupAddress, PartitionAddress, StreamAddress
from shardserver.protocol.body import Body, Done
from shardserver.protocol.clients import ClientDetails, ClientInfo, Membership
from shardserver.protocol.groups import Assignment, GroupDetails, GroupHeader, GroupMember
from shardserver.protocol.login import LoginRequest
from shardserver.protocol.messages import PollRequest, SendReply, SendRequest
from shardserver.protocol.options import decode_options
from shardserver.protocol.permissions import GlobalPermissions, Permissions, StreamPermissions
from shardserver.protocol.statistics import semver_number
from shardserver.protocol.streams import CreateStreamRequest, StreamHeader
from shardserver.protocol.system import ClusterMetadata, DescribeOptionsRequest, SnapshotRequest
from shardserver.protocol.table import TABLE, Command
from shardserver.protocol.tlv import Typed, decode_user_headers
from shardserver.protocol.tokens import CreateTokenRequest
from shardserver.protocol.users import (
    ChangePasswordRequest,
    CreateUserRequest,
    UpdatePermissionsRequest,
    UpdateUserRequest,
)
from tests.protocol.bodies import REPLIES, REQUESTS


def check(value: Body, hexadecimal: str) -> None:
    raw = bytes.fromhex(hexadecimal)
    assert value.encode() == raw
    assert type(value).decode(memoryview(raw)) == value


def code_of(codec: type[Body], raw: bytes) -> Code:
    with pytest.raises(RejectedError) as caught:
        codec.decode(memoryview(raw))
    return caught.value.code


# Shapes


def test_a_client_with_memberships() -> None:
    info = ClientInfo(5, 0, 4, "[::1]:9", 2)
    value = ClientDetails(info, (Membership(1, 2, 3), Membership(4, 5, 6)))
    head = "05000000 00000000 04 07000000 5b3a3a315d3a39 02000000"
    check(value, head + "01000000 02000000 03000000" + "04000000 05000000 06000000")


def test_a_group_with_idle_members() -> None:
    members = (GroupMember(0, (2, 0)), GroupMember(1, ()))
    head = "07000000 03000000 02000000 01 67"
    check(
        GroupDetails(GroupHeader(7, 3, 2, "g"), members), head + "00000000 02000000 02000000 00000000 01000000 00000000"
    )
    check(Assignment(9, ()), "0900000000000000 00000000")


def test_an_update_of_a_user_says_what_it_changes() -> None:
    check(UpdateUserRequest(3, None, None, {}), "01 04 03000000 00 00")
    check(UpdateUserRequest(3, None, 2, {}), "01 04 03000000 00 01 02")
    check(UpdateUserRequest("bob", "rob", None, {}), "02 03 626f62 01 03 726f62 00")


def test_permissions_with_streams_without_topics() -> None:
    streams = {1: StreamPermissions(manage_stream=True), 9: StreamPermissions(send_messages=True)}
    tree = Permissions(GlobalPermissions(manage_servers=True, send_messages=True), streams)
    flags = "01 00 00 00 00 00 00 00 00 01"
    first = "01000000 01 00 00 00 00 00 00 01"
    second = "09000000 00 00 00 00 00 01 00 00"
    check(tree, flags + "01" + first + second)
    check(UpdatePermissionsRequest(0, Permissions()), "01 04 00000000 01 0b000000" + "00" * 11)


def test_a_login_with_a_context_and_one_with_a_token() -> None:
    check(
        LoginRequest(11264, "s", "1", "root", "pass", b"ctx"),
        "002c0000 0173 0131 04726f6f74 0470617373 03000000 637478",
    )
    check(LoginRequest(11264, "s", "1", None, "token"), "002c0000 0173 0131 05746f6b656e 00000000")


def test_a_password_and_a_token_stay_out_of_a_repr() -> None:
    for value in (
        LoginRequest(1, "s", "1", "root", "hidden"),
        ChangePasswordRequest(1, "hidden", "hidden"),
        CreateUserRequest("bob", "hidden", 1, None, {}),
    ):
        assert "hidden" not in repr(value)


def test_a_partition_that_is_not_named() -> None:
    address = PartitionAddress(2, "g", 1, 2, None)
    check(address, "02 02 01 67 01 04 01000000 01 04 02000000 00 00000000")
    raw = bytes.fromhex("02 02 01 67 01 04 01000000 01 04 02000000 07 09000000")
    assert PartitionAddress.decode(memoryview(raw)) == address


def test_a_send_reply_may_be_empty() -> None:
    assert SendReply.decode(memoryview(b"")) == SendReply(())
    assert code_of(SendReply, wire.u32(1) + bytes(19)) == code_of(SendReply, wire.u32(1) + bytes(21)) == 3


def test_a_cluster_without_nodes() -> None:
    check(ClusterMetadata("", ()), "00000000 00000000")


def test_a_version_is_one_number() -> None:
    assert semver_number("0.9.0") == 9000
    assert semver_number("1.23.456-edge.5") == 1_023_456


def test_typed_values_of_every_kind() -> None:
    kinds = {1: b"\x00", 2: "ż", 3: True, 4: -1, 5: -2, 6: -3, 7: -4, 8: -5, 9: 1, 10: 2, 11: 3, 12: 4, 13: 5, 14: 0.5}
    for kind, value in (*kinds.items(), (15, -2.25), (8, -(1 << 127)), (13, (1 << 128) - 1)):
        typed = Typed(kind, value)
        assert Typed.decode(kind, typed.encode()) == typed
    for kind, size in ((0, 1), (16, 1), (3, 2), (4, 2), (8, 8), (12, 4), (13, 15), (2, 0), (1, 256)):
        with pytest.raises(ValueError):
            Typed.decode(kind, bytes(size))


# Limits and codes


@pytest.mark.parametrize("length", [1, 255])
def test_names_have_1_to_255_bytes(length: int) -> None:
    request = CreateStreamRequest("n" * length, {})
    assert CreateStreamRequest.decode(memoryview(request.encode())) == request
    token = CreateTokenRequest("n" * length, 0)
    assert CreateTokenRequest.decode(memoryview(token.encode())) == token


def test_a_name_that_is_no_name() -> None:
    assert code_of(CreateStreamRequest, b"\x00") == Code.INVALID_COMMAND
    assert code_of(CreateStreamRequest, b"\x02\xff\xfe") == Code.INVALID_COMMAND
    assert code_of(CreateStreamRequest, b"\x05four") == Code.INVALID_COMMAND
    for value in ("", "x" * 256, "ż" * 128):
        with pytest.raises(RejectedError):
            wire.name(value)


def test_identifiers_of_a_wrong_kind_or_length() -> None:
    for raw in (b"\x00\x04\0\0\0\0", b"\x01\x03\0\0\0", b"\x01\x08" + bytes(8), b"\x02\x00", b"\x03\x01x"):
        assert code_of(StreamAddress, raw) == Code.INVALID_IDENTIFIER
    assert code_of(StreamAddress, b"\x01\x04\x00") == Code.INVALID_COMMAND
    assert StreamAddress.decode(memoryview(b"\x02\x017")).stream == "7"


def user(name: str, password: str, status: int = 1) -> bytes:
    return CreateUserRequest(name, password, status, None, {}).encode()


def test_users_have_bounded_names_and_passwords() -> None:
    for name, password in (("bob", "abc"), ("b" * 50, "p" * 100)):
        assert CreateUserRequest.decode(memoryview(user(name, password))).username == name
    for name in ("bo", "b" * 51):
        assert code_of(CreateUserRequest, user(name, "secret")) == Code.INVALID_USERNAME
        assert code_of(UpdateUserRequest, UpdateUserRequest(1, name, None, {}).encode()) == Code.INVALID_USERNAME
    for password in ("pw", "p" * 101):
        assert code_of(CreateUserRequest, user("bob", password)) == Code.INVALID_PASSWORD
        assert (
            code_of(ChangePasswordRequest, ChangePasswordRequest(1, "old", password).encode()) == Code.INVALID_PASSWORD
        )
    assert ChangePasswordRequest.decode(memoryview(ChangePasswordRequest(1, "o", "new").encode())).current == "o"


def test_a_user_is_active_or_not() -> None:
    for status in (0, 3, 255):
        assert code_of(CreateUserRequest, user("bob", "secret", status)) == Code.INVALID_USER_STATUS
        assert code_of(UpdateUserRequest, UpdateUserRequest(1, None, status, {}).encode()) == Code.INVALID_USER_STATUS


def option(key: bytes, kind: int, value: bytes, key_kind: int = 2) -> bytes:
    return wire.u8(key_kind) + wire.sized(key) + wire.u8(kind) + wire.sized(value)


@pytest.mark.parametrize(
    ("block", "code"),
    [
        (option(b"k", 2, b"v", key_kind=1), 4042),
        (option(b"", 2, b"v"), 4042),
        (option(b"k" * 256, 2, b"v"), 4042),
        (option(b"k", 2, b""), 4042),
        (option(b"k", 2, b"v" * 256), 4042),
        (option(b"k", 2, b"\xff"), 4042),
        (option(b"k", 3, b"\x02"), 4042),
        (option(b"k", 12, bytes(4)), 4042),
        (option(b"k", 0, b"v"), 4042),
        (option(b"k", 16, b"v"), 4042),
        (option(b"k", 2, b"v") * 2, 4042),
        (b"".join(option(b"%d" % number, 9, b"v") for number in range(1025)), 4043),
        (b"".join(option(b"%d" % number, 1, b"v" * 250) for number in range(400)), 4043),
        (b"\x02" + wire.u32(256), 4042),
        (option(b"k", 2, b"v")[:-1], 3),
        (b"\x02", 3),
    ],
)
def test_options_that_cannot_be_used(block: bytes, code: int) -> None:
    with pytest.raises(RejectedError) as caught:
        decode_options(memoryview(block))
    assert caught.value.code == code


def test_user_headers_that_cannot_be_used() -> None:
    for raw, code in (
        (option(b"", 2, b"v"), 4018),
        (option(b"k", 2, b""), 4019),
        (option(b"k", 12, b"v"), 4019),
        (option(b"k", 1, b"v" * 200) * 500, 4017),
    ):
        with pytest.raises(RejectedError) as caught:
            decode_user_headers(memoryview(raw))
        assert caught.value.code == code
    assert decode_user_headers(memoryview(b"")) == ()


def test_partitionings_that_are_none() -> None:
    def body(kind: int, value: bytes) -> bytes:
        return SendRequest(0, 0, kind, value, 1, b"").encode()

    assert code_of(SendRequest, body(3, b"")) == Code.INVALID_KEY_LENGTH
    for kind, value in ((0, b""), (1, b"x"), (2, b""), (2, b"xxx"), (4, b"x")):
        assert code_of(SendRequest, body(kind, value)) == Code.INVALID_COMMAND
    assert SendRequest.decode(memoryview(body(3, b"k" * 255))).value == b"k" * 255


def test_a_send_whose_metadata_length_cuts_its_fields() -> None:
    whole = SendRequest(0, 0, 1, b"", 1, bytes(300)).encode()
    for length in range(18):
        assert code_of(SendRequest, wire.u32(length) + whole[4:]) == Code.INVALID_COMMAND


def test_kinds_scopes_and_strategies_that_are_none() -> None:
    poll = PollRequest(PartitionAddress(1, 1, 1, 1, 0), 1, 0, 1, False).encode()
    for strategy in (0, 6, 255):
        assert code_of(PollRequest, poll[:24] + wire.u8(strategy) + poll[25:]) == Code.INVALID_COMMAND
    for kind in (0, 3):
        assert code_of(PollRequest, wire.u8(kind) + poll[1:]) == Code.INVALID_COMMAND
    for scope in (0, 4):
        assert code_of(DescribeOptionsRequest, wire.u8(scope)) == Code.INVALID_COMMAND
    for raw in (b"\x00\x00", b"\x07\x00", b"\x01\x01\x07", b"\x01\x02\x01"):
        assert code_of(SnapshotRequest, raw) == Code.INVALID_COMMAND
    assert SnapshotRequest.decode(memoryview(b"\x06\x02\x64\x01")) == SnapshotRequest(6, (100, 1))


# Bytes after the last field

ENDS_WITH_OPTIONS = {
    Command.CREATE_STREAM, Command.UPDATE_STREAM, Command.CREATE_TOPIC, Command.UPDATE_TOPIC,
    Command.CREATE_USER, Command.UPDATE_USER,
}  # fmt: skip
# Both forms of a login end exactly; a batch ends its request.
ENDS_EXACTLY = {Command.LOGIN, Command.LOGIN_WITH_TOKEN, Command.SEND_MESSAGES}


@pytest.mark.parametrize("command", sorted(set(TABLE) - ENDS_WITH_OPTIONS - ENDS_EXACTLY), ids=lambda one: one.name)
def test_a_request_ignores_bytes_after_its_last_field(command: Command) -> None:
    codec = TABLE[command].request
    for body in REQUESTS[command]:
        assert codec.decode(memoryview(body + bytes(4))) == codec.decode(memoryview(body))


LISTS = {Command.GET_STREAMS, Command.GET_USERS, Command.GET_CLIENTS, Command.GET_TOKENS, Command.GET_GROUPS}
# An archive and batches go on to the end.
REPLY_ENDS_OPEN = {Command.GET_SNAPSHOT, Command.POLL_MESSAGES}


def test_a_reply_refuses_bytes_after_its_last_field() -> None:
    for command in set(TABLE) - REPLY_ENDS_OPEN:
        assert REPLIES[command] or TABLE[command].reply is Done, command
        for body in REPLIES[command] or [b""]:
            assert code_of(TABLE[command].reply, body + b"\x01") == Code.INVALID_COMMAND, command


def test_a_list_goes_on_to_the_end() -> None:
    for command in LISTS:
        codec = TABLE[command].reply
        for body in REPLIES[command]:
            assert codec.decode(memoryview(body + body)).encode() == body + body


def test_stream_headers_carry_options_of_a_newer_server() -> None:
    header = StreamHeader(1, 2, 0, 4, 5, "s", {"new": Typed(12, 7)})
    assert StreamHeader.read(wire.Reader(header.encode())) == header


def test_a_group_address_holds_three_identifiers() -> None:
    check(GroupAddress("s", 1, "g"), "02 01 73 01 04 01000000 02 01 67")
