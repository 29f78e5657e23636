"""Consumer groups through a server: what a change of rights, or the death of a shard, does to members."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shardserver.client.connection import RequestRefusedError
from shardserver.protocol.addresses import CONSUMER_GROUP, GroupAddress, PartitionAddress
from shardserver.protocol.groups import CreateGroupRequest
from shardserver.protocol.offsets import ACK_COMMITTED, StoreOffsetRequest
from shardserver.protocol.permissions import GlobalPermissions, Permissions
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import CreateTopicRequest
from shardserver.protocol.users import CreateUserRequest, UpdatePermissionsRequest
from tests.sharded_server import ShardedServer, rule
from tests.wire_connection import WireConnection

GROUP = GroupAddress("s", "t", "g")
ON_SHARD_1 = '[net]\naccept_shards = "1"\nhandover_requests = 0\n'
MAY_POLL = Permissions(GlobalPermissions(read_topics=True, poll_messages=True))


@pytest.mark.parametrize("cores", [1, 2])
def test_a_member_that_may_poll_no_more_keeps_no_partition(tmp_path: Path, cores: int) -> None:
    server = ShardedServer(tmp_path, cores=cores).serve()
    try:
        with WireConnection(server.address) as root, WireConnection(server.address) as other:
            root.ask(Command.CREATE_STREAM, CreateStreamRequest("s", {}))
            root.ask(Command.CREATE_TOPIC, CreateTopicRequest("s", 2, "t", {}))
            root.ask(Command.CREATE_GROUP, CreateGroupRequest("s", "t", "g"))
            root.ask(Command.CREATE_USER, CreateUserRequest("ann", "a password", 1, MAY_POLL, {}))
            other.log_out()
            other.login("ann", "a password")
            other.ask(Command.JOIN_GROUP, GROUP)
            root.ask(Command.JOIN_GROUP, GROUP)
            assert len(root.ask(Command.SYNC_GROUP, GROUP).partitions) == 1
            root.ask(Command.UPDATE_PERMISSIONS, UpdatePermissionsRequest("ann", None))
            end = time.monotonic() + 20
            while len(root.ask(Command.SYNC_GROUP, GROUP).partitions) < 2:
                assert time.monotonic() < end, "the member still has its partition"
    finally:
        server.kill()


def test_a_coordinators_death_moves_no_partition_and_never_shows_a_member_less(tmp_path: Path) -> None:
    """Of two groups one is coordinated on the shard that dies; partitions of both are there."""
    server = ShardedServer(tmp_path, cores=2, config=ON_SHARD_1).serve()
    try:
        with ExitStack() as stack:
            members = [stack.enter_context(server.connect()) for _ in range(3)]
            members[0].ask(Command.CREATE_STREAM, CreateStreamRequest("s", {}))
            members[0].ask(Command.CREATE_TOPIC, CreateTopicRequest("s", 7, "t", {}))
            for name in "g", "h":
                members[0].ask(Command.CREATE_GROUP, CreateGroupRequest("s", "t", name))
                for one in members:
                    one.ask(Command.JOIN_GROUP, GroupAddress("s", "t", name))
            before = assignments(members)
            assert all(sorted(sum(row, ())) == list(range(7)) for row in before)
            pid = server.kill_shard(0)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert assignments(members) == before
            server.wait_ready(other_than=pid)
    finally:
        server.kill()


def test_a_member_commits_across_a_restart_of_its_partitions_shard(tmp_path: Path) -> None:
    """What is asked before the partition is granted again may be asked again: it is no refusal."""
    server = ShardedServer(tmp_path, cores=2, config=ON_SHARD_1 + rule("s", "t", 0)).serve()
    try:
        with server.connect() as root, server.connect() as member:
            root.ask(Command.CREATE_STREAM, CreateStreamRequest("s", {}))
            root.ask(Command.CREATE_TOPIC, CreateTopicRequest("s", 1, "t", {}))
            root.ask(Command.CREATE_GROUP, CreateGroupRequest("s", "t", "g"))
            root.ask(Command.CREATE_USER, CreateUserRequest("ann", "a password", 1, MAY_POLL, {}))
            root.send_payloads("t", 0, b"first", b"second")
            member.log_out()
            member.login("ann", "a password")
            member.ask(Command.JOIN_GROUP, GROUP)
            server.kill_shard(0)
            address = PartitionAddress(CONSUMER_GROUP, "g", "s", "t", 0)
            again(member, Command.STORE_OFFSET, StoreOffsetRequest(address, 1, ACK_COMMITTED))
            assert again(root, Command.GET_OFFSET, address).stored_offset == 1
    finally:
        server.kill()


def again(connection: WireConnection, command: Command, request: Any) -> Any:
    """As SDKs do: the same once more after 57 and 58."""
    end = time.monotonic() + 30
    while True:
        try:
            return connection.ask(command, request)
        except RequestRefusedError as error:
            if error.code not in (57, 58) or time.monotonic() > end:
                raise


def assignments(members: list[WireConnection]) -> list[list[tuple[int, ...]]]:
    """Of the groups g and h."""
    return [
        [again(one, Command.SYNC_GROUP, GroupAddress("s", "t", name)).partitions for one in members]
        for name in ("g", "h")
    ]
