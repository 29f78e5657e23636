"""Users, tokens and permissions through a server: several shards, restarts. The SDK's calls: tests/conformance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardserver.client.connection import RequestRefusedError
from shardserver.errors import Code
from shardserver.protocol.frame import encode_request
from shardserver.protocol.login import PROTOCOL_VERSION, LoginRequest
from shardserver.protocol.permissions import Permissions as Tree
from shardserver.protocol.permissions import StreamPermissions
from shardserver.protocol.table import OP_REGISTER, Command
from shardserver.protocol.tokens import CreateTokenRequest
from shardserver.protocol.users import ChangePasswordRequest, UpdateUserRequest
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

PASSWORD = "a password"
EVICTED, NO_SESSION = 255, 1


@pytest.fixture(params=[1, 2], ids=["1 shard", "2 shards"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=request.param).serve()
    yield made
    made.kill()


@contextlib.contextmanager
def as_user(server: ShardedServer, name: str, password: str = PASSWORD) -> Iterator[WireConnection]:
    with WireConnection(server.address) as made:
        made.log_out()
        made.login(name, password)
        yield made


def login_with(server: ShardedServer, token: str) -> int:
    """The user's id, on a connection of its own; else minus the reason of the eviction."""
    with WireConnection(server.address) as made:
        made.log_out()
        body = LoginRequest(PROTOCOL_VERSION, "test", "1", None, token).encode()
        made.write_bytes(encode_request(OP_REGISTER, 0, body, client=b"t" * 16, request=0, session=0))
        try:
            return int.from_bytes(made.read_answer().body[4:8], "little")
        except RequestRefusedError as error:
            return EVICTED - error.code


def reason_of(connection: WireConnection) -> int:
    """Of the eviction with which the next request is answered."""
    with pytest.raises(RequestRefusedError) as caught:
        connection.ask(Command.GET_ME)
    return caught.value.code - EVICTED


def test_what_ends_a_users_sessions_on_every_shard(server: ShardedServer) -> None:
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(WireConnection(server.address))
        root.create_user("alice", PASSWORD, None)
        hers = [stack.enter_context(as_user(server, "alice")) for _ in range(4)]  # two a shard
        caller, *others = hers
        token = caller.ask(Command.CREATE_TOKEN, CreateTokenRequest("ci", 0)).token
        assert login_with(server, token) == 1
        caller.ask(Command.CHANGE_PASSWORD, ChangePasswordRequest("alice", PASSWORD, "another"))
        caller.ask(Command.GET_ME)  # goes on
        assert [reason_of(one) for one in others] == [NO_SESSION] * 3
        assert login_with(server, token) == -10
        root.ask(Command.UPDATE_USER, UpdateUserRequest("alice", None, 2, {}))
        assert reason_of(caller) == NO_SESSION


def test_users_tokens_and_permissions_are_there_after_a_kill(server: ShardedServer) -> None:
    with WireConnection(server.address) as root:
        stream = root.create_stream("orders")
        root.create_topic("orders", "events", 1, None)
        root.create_user("alice", PASSWORD, Tree(streams={stream: StreamPermissions(send_messages=True)}))
        with as_user(server, "alice") as alice:
            token = alice.ask(Command.CREATE_TOKEN, CreateTokenRequest("ci", 0)).token
    server.kill()
    server.serve()
    assert login_with(server, token) == 1
    with as_user(server, "alice") as alice:
        assert [one.name for one in alice.ask(Command.GET_TOKENS).tokens] == ["ci"]
        with pytest.raises(RequestRefusedError) as caught:
            alice.ask(Command.GET_STREAMS)
        assert caught.value.code == Code.UNAUTHORIZED
