"""Consumer groups through a server: what a change of rights does to a member."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shardserver.protocol.addresses import GroupAddress
from shardserver.protocol.groups import CreateGroupRequest
from shardserver.protocol.permissions import GlobalPermissions, Permissions
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import CreateTopicRequest
from shardserver.protocol.users import CreateUserRequest, UpdatePermissionsRequest
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

GROUP = GroupAddress("s", "t", "g")
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
