"""What a server says of itself and of who is connected, through a real server of two shards: statistics, snapshot,
options, sessions, names that look like numbers.
"""

from __future__ import annotations

import io
import os
import platform
import socket
import time
import zipfile
from collections.abc import Iterator

import psutil
import pytest

from shardserver.client.connection import RequestRefusedError
from shardserver.errors import Code
from shardserver.protocol.addresses import TopicAddress
from shardserver.protocol.clients import NOBODY
from shardserver.protocol.login import PROTOCOL_VERSION, LoginReply, LoginRequest
from shardserver.protocol.options import CATALOGUE
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.system import SCOPE_STREAM, SCOPE_TOPIC, SCOPE_USER, DescribeOptionsRequest, SnapshotRequest
from shardserver.protocol.table import Command
from shardserver.protocol.tlv import KIND_STRING, Typed
from shardserver.protocol.topics import CreateTopicRequest
from tests.server_process import PASSWORD
from tests.sharded_server import ShardedServer
from tests.supervisor.servers import children, wait_until
from tests.wire_connection import WireConnection

SHARDS = 2
EVICTED = 255  # how WireConnection tells a reason


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path_factory.mktemp("system"), cores=SHARDS, config="[net]\nhandover_requests = 0\n")
    try:
        yield made.serve()
    finally:
        made.kill()


@pytest.fixture
def one(server: ShardedServer) -> Iterator[WireConnection]:
    with server.connect() as made:
        yield made


# Statistics and snapshot


def test_every_field_of_the_statistics_is_true(server: ShardedServer, one: WireConnection) -> None:
    one.create_stream("counted")
    one.create_topic("counted", "t", 3)
    before = one.ask(Command.GET_STATS)
    one.send_payloads("t", 0, *[b"x" * 1000] * 50, stream="counted")
    busy_until = time.monotonic() + 0.7  # longer than CPU shares are kept for
    while time.monotonic() < busy_until:
        one.send_payloads("t", 1, b"x", stream="counted")
    told = one.ask(Command.GET_STATS)
    pids = [server.pid, *(server.shard_pid(number) for number in range(SHARDS))]
    shards = [psutil.Process(pid) for pid in pids[1:]]
    assert told.process_id == server.pid
    assert 0 < told.cpu_usage <= 100 * os.cpu_count() and 0 < told.total_cpu_usage <= 100
    assert sum(one.memory_info().rss - one.memory_info().shared for one in shards) // 2 < told.memory_usage
    assert told.memory_usage < sum(one.memory_info().rss for one in shards) + (64 << 20)
    assert told.total_memory <= psutil.virtual_memory().total and 0 < told.available_memory < told.total_memory
    assert abs(told.start_time / 1e6 - psutil.Process(server.pid).create_time()) < 1
    assert abs(told.start_time + told.run_time - time.time() * 1e6) < 60e6
    assert told.written_bytes >= before.written_bytes + 50_000 and told.read_bytes >= before.read_bytes
    assert told.messages_count >= before.messages_count + 50
    assert told.messages_size_bytes > before.messages_size_bytes + 50_000
    assert (told.streams_count, told.topics_count) == (before.streams_count, before.topics_count) != (0, 0)
    assert told.partitions_count == told.segments_count == before.partitions_count >= 3
    assert told.clients_count == len(one.ask(Command.GET_CLIENTS).clients)
    assert (told.hostname, told.os_name) == (socket.gethostname(), platform.system())
    assert (told.os_version, told.kernel_version) == (platform.version(), platform.release())
    assert told.server_version and told.server_semver == 1000 and told.cache_metrics == ()
    assert told.threads_count >= SHARDS
    disk = psutil.disk_usage(str(server.data))
    assert told.total_disk_space == disk.total and 0 < told.free_disk_space < disk.total


def test_the_statistics_are_those_of_the_server_wherever_they_are_asked(server: ShardedServer) -> None:
    connections = server.connect_each()
    told = [one.ask(Command.GET_STATS) for one in connections]
    assert len({(one.process_id, one.start_time, one.total_memory, one.partitions_count) for one in told}) == 1
    for one in connections:
        one.close()


def test_a_snapshot_holds_all_parts_and_no_secret(server: ShardedServer, one: WireConnection) -> None:
    snapshot = one.ask(Command.GET_SNAPSHOT, SnapshotRequest(2, (100,)))
    with zipfile.ZipFile(io.BytesIO(snapshot.archive)) as archive:
        parts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert len(parts) == 6
    assert "shards/0/journal/" in parts["filesystem_overview.txt"]
    listed = {int(line.split()[0]) for line in parts["process_list.txt"].splitlines()[1:]}
    assert {server.pid, *children(server.pid)} == listed
    assert f"process_id: {server.pid}" in parts["resource_usage.txt"]
    assert [line for line in parts["server_logs.txt"].splitlines() if line[0] == "#"] == ["# shard 0", "# shard 1"]
    assert "handover_requests = 0" in parts["server_config.txt"]
    for name, text in parts.items():
        assert PASSWORD not in text and "argon2" not in text and "PASSWORD" not in text, name


def test_a_snapshot_of_an_unknown_part_or_method_is_no_command(one: WireConnection) -> None:
    for wrong in (SnapshotRequest(7, (100,)), SnapshotRequest(0, (1,)), SnapshotRequest(1, (7,))):
        with pytest.raises(RequestRefusedError) as refused:
            one.ask(Command.GET_SNAPSHOT, wrong)
        assert refused.value.code == Code.INVALID_COMMAND


# Options


def test_options_are_described_with_their_defaults_and_a_sentence_each(one: WireConnection) -> None:
    described = one.ask(Command.DESCRIBE_OPTIONS, DescribeOptionsRequest(SCOPE_TOPIC)).options
    assert [one.key for one in described] == sorted(CATALOGUE)
    for option in described:
        assert option.default.kind == CATALOGUE[option.key].kind and len(option.description) > 20
    for scope in (SCOPE_STREAM, SCOPE_USER):
        assert one.ask(Command.DESCRIBE_OPTIONS, DescribeOptionsRequest(scope)).options == ()


def test_texts_become_canonical_kinds_and_replies_tell_explicit_from_derived(one: WireConnection) -> None:
    one.create_stream("options")
    texts = {
        "message_expiry": "7 days",
        "max_topic_size": "10 GiB",
        "enforce_fsync": "true",
        "segment_size": "1000 MiB",
    }
    texts |= {"messages_required_to_save": "1000"}
    asked = {key: Typed(KIND_STRING, text) for key, text in texts.items()}
    made = one.ask(Command.CREATE_TOPIC, CreateTopicRequest("options", 1, "t", asked)).header
    values = {"message_expiry": 7 * 86400 * 10**6, "max_topic_size": 10 << 30, "enforce_fsync": True}
    values |= {"segment_size": 1000 << 20, "messages_required_to_save": 1000}
    for header in (made, one.ask(Command.GET_TOPIC, TopicAddress("options", "t")).header):
        assert {key: typed.value for key, typed in header.explicit.items()} == values
        assert all(typed.kind == CATALOGUE[key].kind for key, typed in header.explicit.items())
        assert set(header.derived) == set(CATALOGUE) - set(values)
        assert list(header.derived) == sorted(header.derived)
        assert (header.message_expiry, header.max_topic_size) == (7 * 86400 * 10**6, 10 << 30)


# Sessions


def log_in(
    one: WireConnection, user: str = "iggy", password: str = PASSWORD, version: int = PROTOCOL_VERSION
) -> LoginReply:
    reply: LoginReply = one.ask(Command.LOGIN, LoginRequest(version, "tests", "1", user, password))
    return reply


def refusal(one: WireConnection, command: Command, request: object = None) -> int:
    with pytest.raises(RequestRefusedError) as refused:
        one.ask(command, request)  # type: ignore[arg-type]  # any body
    return int(refused.value.code)


def test_a_second_login_is_answered_with_the_session_that_is_bound(one: WireConnection) -> None:
    first = log_in(one)
    assert first.session == one.session and log_in(one) == first
    assert log_in(one, password="wrong").session == first.session
    assert one.ask(Command.GET_ME).info.user_id == 0


def test_a_logout_ends_the_session_and_leaves_the_connection(one: WireConnection) -> None:
    former, client_id = one.session, one.ask(Command.GET_ME).info.client_id
    one.log_out()
    assert refusal(one, Command.GET_ME) == Code.UNAUTHENTICATED
    one.log_out()  # a success without a session too
    one.ask(Command.PING)
    assert log_in(one).session != former
    me = one.ask(Command.GET_ME).info
    assert (me.client_id, me.user_id) == (client_id, 0)


def test_others_see_who_is_connected_and_who_is_logged_in(server: ShardedServer, one: WireConnection) -> None:
    with server.connect() as other:
        found = other.ask(Command.GET_ME).info
        other.log_out()
        listed = {client.client_id: client for client in one.ask(Command.GET_CLIENTS).clients}
        assert listed[found.client_id].user_id == NOBODY
        host, port = other._socket.getsockname()
        assert listed[found.client_id].address == f"{host}:{port}"

    def gone() -> bool:
        return found.client_id not in {client.client_id for client in one.ask(Command.GET_CLIENTS).clients}

    wait_until(gone, "a connection that is closed is not listed")


@pytest.mark.parametrize(
    ("user", "password", "version", "reason"),
    [
        ("iggy", "wrong", PROTOCOL_VERSION, 9),
        ("nobody", PASSWORD, PROTOCOL_VERSION, 9),
        ("iggy", PASSWORD, PROTOCOL_VERSION - 1, 14),
        ("iggy", PASSWORD, PROTOCOL_VERSION + (1 << 20), 14),
    ],
)
def test_a_login_that_fails_is_evicted_with_its_reason(
    one: WireConnection, user: str, password: str, version: int, reason: int
) -> None:
    one.log_out()
    assert refusal(one, Command.LOGIN, LoginRequest(version, "tests", "1", user, password)) == EVICTED + reason


def test_a_change_without_a_session_is_evicted_and_a_read_is_not(one: WireConnection) -> None:
    one.log_out()
    assert refusal(one, Command.GET_STREAMS) == Code.UNAUTHENTICATED
    assert refusal(one, Command.CREATE_STREAM, CreateStreamRequest("mine", {})) == EVICTED + 1


# Names


def test_a_name_in_digits_is_a_name_and_a_number_is_an_id(one: WireConnection) -> None:
    names = ["7", "0", "007", "4294967295", "4294967296", "-1", "1e3", "\N{ARABIC-INDIC DIGIT SEVEN}"]
    ids = {name: one.create_stream(name) for name in names}
    for name, number in ids.items():
        one.create_topic(name, name, 1)
        assert one.send_payloads(name, 0, name.encode(), stream=name) == 0
        assert number != int(name) if name in ("7", "0") else True
    for name, number in ids.items():
        assert one.read_all(name, 0, stream=name) == [name.encode()]
        assert [payload for _, payload in one.messages(0, 0, stream=number)] == [name.encode()]  # type: ignore[arg-type]
    unused = max(ids.values()) + 1
    with pytest.raises(RequestRefusedError) as refused:
        one.poll(unused, 0, 0, 0, 1)
    assert refused.value.code == Code.STREAM_NOT_FOUND
