"""What no method of the SDK sends, but other clients or versions do: codes, evictions and repeats, by frames."""

from __future__ import annotations

import socket

import pytest
from apache_iggy import SendMessage

from shardserver.errors import Code
from shardserver.protocol.addresses import GroupAddress
from shardserver.protocol.frame import HEADER_BYTES, encode_request
from shardserver.protocol.groups import CreateGroupRequest
from shardserver.protocol.login import PROTOCOL_VERSION, LoginRequest
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import CreateTopicRequest
from tests.conformance.site import Site
from tests.conformance.tap import EVICTED
from tests.server_process import PASSWORD
from tests.wire_connection import WireConnection

NO_SESSION, WRONG_PASSWORD, OTHER_VERSION, NO_LOGIN = 1, 9, 14, 15
RESULTS_OF = "frames"
CLIENT = bytes(range(1, 17))


def exchange(address: str, *frames: bytes) -> list[bytes]:
    """The answers to these frames, on a connection of their own; b"" where the server closed instead."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as made, made.makefile("rb") as answers:
        found = []
        for frame in frames:
            made.sendall(frame)
            header = answers.read(HEADER_BYTES)
            found.append(
                header + answers.read(int.from_bytes(header[48:52], "little") - HEADER_BYTES) if header else b""
            )
        return found


def frame(operation: int, body: bytes = b"", code: int = 0, request: int = 0, client: bytes = CLIENT) -> bytes:
    return encode_request(operation, code, body, client=client, request=request, session=0)


def login(version: int = PROTOCOL_VERSION, password: str = PASSWORD) -> bytes:
    return LoginRequest(version, "test", "0", "iggy", password).encode()


def codes(site: Site) -> list[int | str]:
    return [one.code for one in site.tap.log]


def test_what_may_not_come_before_the_login(site: Site) -> None:
    exchange(site.address, frame(2, code=int(Command.PING)), frame(3), frame(2, code=int(Command.GET_STREAMS)))
    assert codes(site) == [0, 0, Code.UNAUTHENTICATED]
    exchange(site.address, frame(128, CreateStreamRequest(site.stream, {}).encode(), request=1))
    assert codes(site)[3:] == [f"{EVICTED} {NO_SESSION}"]


@pytest.mark.parametrize("version", [0, 10 << 10, 12 << 10, 1 << 20])
def test_another_version_of_the_protocol_is_told_ours(site: Site, version: int) -> None:
    (answer,) = exchange(site.address, frame(1, login(version)))
    assert codes(site) == [f"{EVICTED} {OTHER_VERSION}"]
    assert answer.count(PROTOCOL_VERSION.to_bytes(4, "little")) >= 2  # the lowest and the highest


def test_a_patch_of_our_version_logs_in(site: Site) -> None:
    exchange(site.address, frame(1, login(PROTOCOL_VERSION + 7)))
    assert codes(site) == [0]


@pytest.mark.parametrize("code", [38, 44])
def test_logins_of_older_protocols_are_evicted(site: Site, code: int) -> None:
    exchange(site.address, frame(2, b"\x04iggy\x04iggy", code=code))
    assert codes(site) == [f"{EVICTED} {NO_LOGIN}"]


def test_a_login_that_is_none_is_evicted(site: Site) -> None:
    exchange(site.address, frame(1, b"\x01"))
    assert codes(site) == [f"{EVICTED} {NO_LOGIN}"]


def test_a_second_login_of_the_same_client_gets_the_same_session(site: Site) -> None:
    first, second = exchange(site.address, frame(1, login()), frame(1, login()))
    assert codes(site) == [0, 0] and first[-40:] == second[-40:]


def test_a_failed_login_leaves_the_connection_open(site: Site) -> None:
    exchange(site.address, frame(1, login(password="wrong")), frame(1, login()), frame(2, code=int(Command.GET_ME)))
    assert codes(site) == [f"{EVICTED} {WRONG_PASSWORD}", 0, 0]


def test_a_repeated_change_gets_the_first_reply_again(site: Site) -> None:
    create = frame(128, CreateStreamRequest(site.stream, {}).encode(), request=1)
    _, first, second = exchange(site.address, frame(1, login()), create, create)
    assert codes(site) == [0, 0, 0] and first == second


def test_a_repeated_leave_gets_the_first_reply_again(site: Site) -> None:
    group, client = GroupAddress(site.stream, "t", "g").encode(), b"leaves".ljust(16)
    leave, later = (frame(149, group, request=number, client=client) for number in (5, 6))
    other = frame(149, GroupAddress(site.stream, "t", "h").encode(), request=5, client=client)
    *_, first, second, _, _, _ = exchange(
        site.address,
        frame(1, login(), client=client),
        frame(128, CreateStreamRequest(site.stream, {}).encode(), request=1, client=client),
        frame(132, CreateTopicRequest(site.stream, 1, "t", {}).encode(), request=2, client=client),
        frame(139, CreateGroupRequest(site.stream, "t", "g").encode(), request=3, client=client),
        frame(148, group, request=4, client=client),
        *(leave, leave, later, leave, other),
    )
    assert first == second
    assert codes(site) == [0] * 7 + [Code.GROUP_MEMBER_NOT_FOUND, 0, Code.INVALID_FORMAT]


def test_a_body_that_does_not_match_its_checksum_is_refused(site: Site) -> None:
    checked = bytearray(
        encode_request(
            128, 0, CreateStreamRequest(site.stream, {}).encode(), client=CLIENT, request=1, session=0, checked=True
        )
    )
    checked[-1] ^= 1
    exchange(site.address, frame(1, login()), bytes(checked))
    assert codes(site) == [0, Code.INVALID_FORMAT]


def test_unknown_operations_and_codes_are_refused(site: Site) -> None:
    exchange(site.address, frame(1, login()), frame(2, code=999), frame(2, code=int(Command.PING)))
    assert codes(site) == [0, Code.INVALID_COMMAND, 0]


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + bytes(300), bytes(256)])
def test_what_is_no_frame_closes_the_connection(site: Site, raw: bytes) -> None:
    assert exchange(site.tapped.server.address, raw) == [b""]


def test_a_frame_above_the_limit_closes_the_connection(site: Site) -> None:
    head = bytearray(frame(2, code=int(Command.PING)))
    head[48:52] = ((64 << 20) + 1).to_bytes(4, "little")
    assert exchange(site.tapped.server.address, bytes(head)) == [b""]


async def test_an_identifier_of_a_bad_kind_is_refused(site: Site) -> None:
    client = await site.connect()
    with site.refuses(Code.INVALID_IDENTIFIER):
        await client.send_binary_request(int(Command.GET_STREAM), b"\x09\x04" + bytes(4))
    with site.refuses(Code.INVALID_IDENTIFIER):
        await client.send_binary_request(int(Command.GET_STREAM), b"\x01\x03" + bytes(3))


async def test_every_command_refuses_a_body_of_one_byte_or_ignores_it(site: Site) -> None:
    """Nothing hangs, closes or breaks."""
    client = await site.topic()
    for command in Command:
        if command not in (Command.LOGIN, Command.LOGIN_WITH_TOKEN, Command.LOGOUT):
            seen = len(site.tap.log)
            try:
                await client.send_binary_request(int(command), b"\x01")
            except RuntimeError:
                answered = {one.code for one in site.tap.log[seen:] if one.command == command.name}
                known = {Code.INVALID_COMMAND, Code.INVALID_IDENTIFIER, Code.FEATURE_UNAVAILABLE, Code.INVALID_FORMAT}
                assert answered <= known, command
    assert await site.send(client, "after") == 0


async def test_user_headers_and_payloads_have_their_limits(site: Site) -> None:
    client = await site.topic()
    with site.client_refuses():
        await client.send_messages(site.stream, "t", 0, [SendMessage("x", user_headers={"k": "v" * 256})])
    with site.client_refuses():
        many = {f"{n:0200}": "v" * 255 for n in range(250)}
        await client.send_messages(site.stream, "t", 0, [SendMessage("x", user_headers=many)])


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    with WireConnection(site.address) as connection:
        numbers = [connection.write(command) for command in (Command.PING, Command.GET_STREAMS, Command.GET_ME) * 5]
        assert [connection.read_answer().header.request for _ in numbers] == numbers
