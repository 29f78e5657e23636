"""Consumer groups through a server: what an operator sees of them, and members over the death of shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardserver.cli.control import ask
from shardserver.cli.main import main
from shardserver.errors import ShardServerError
from shardserver.protocol.addresses import CONSUMER_GROUP, GroupAddress, PartitionAddress
from shardserver.protocol.groups import CreateGroupRequest
from shardserver.protocol.messages import NEXT, PollReply, PollRequest
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer
from tests.supervisor.servers import wait_until
from tests.wire_connection import WireConnection, batches_of

GROUP = GroupAddress("s", "t", "readers")
PARTITIONS = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=2).serve()
    with WireConnection(made.address) as root:
        root.create_stream("s")
        root.create_topic("s", "t", PARTITIONS, None)
        root.ask(Command.CREATE_GROUP, CreateGroupRequest("s", "t", "readers"))
        for partition in range(PARTITIONS):
            root.send_payloads("t", partition, b"a", b"b", b"c")
    yield made
    made.kill()


def poll(member: WireConnection, partition: int, count: int = 2) -> list[bytes] | None:
    """None: the sentinel, it is not its partition."""
    address = PartitionAddress(CONSUMER_GROUP, "readers", "s", "t", partition)
    found: PollReply = member.ask(Command.POLL_MESSAGES, PollRequest(address, NEXT, 0, count, True))
    if found.partition != partition:
        return None
    return [payload for _, payloads in batches_of(memoryview(found.batches)) for payload in payloads]


def owned(member: WireConnection) -> list[int]:
    found = member.ask(Command.SYNC_GROUP, GROUP)
    return [] if found is None else list(found.partitions)


def test_an_operator_sees_owners_and_lag(server: ShardedServer, capsys: pytest.CaptureFixture[str]) -> None:
    with WireConnection(server.address) as member:
        member.ask(Command.JOIN_GROUP, GROUP)
        assert owned(member) == [0, 1, 2, 3]
        assert poll(member, 1) == [b"a", b"b"]
        rows = ask(str(server.data), "groups")["groups"]
        assert [(row["partition"], row["owner"], row["committed"], row["end"], row["lag"]) for row in rows] == [
            (0, 0, None, 2, 3), (1, 0, 1, 2, 1), (2, 0, None, 2, 3), (3, 0, None, 2, 3),
        ]  # fmt: skip
        assert main(["groups", "--data", str(server.data)]) == 0
        head, *lines = capsys.readouterr().out.splitlines()
        assert head.split() == ["stream", "topic", "group", "partition", "owner", "committed", "end", "lag"]
        assert lines[1].split() == ["s", "t", "readers", "1", "0", "1", "2", "1"]
        assert main(["groups", "--data", str(server.data), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["groups"] == rows
    wait_until(lambda: {row["owner"] for row in ask(str(server.data), "groups")["groups"]} == {None}, "nobody owns any")


@pytest.mark.parametrize("shard", [0, 1])
def test_members_go_on_when_a_shard_has_died(server: ShardedServer, shard: int) -> None:
    members = [WireConnection(server.address) for _ in range(4)]
    try:
        for member in members:
            member.ask(Command.JOIN_GROUP, GROUP)
        survivors = [member for member in members if member.shard != shard]
        assert len(survivors) == 2
        server.kill_shard(shard)
        wait_until(lambda: sorted(p for one in survivors for p in owned_or_none(one)) == [0, 1, 2, 3], "all are owned")
        for member in survivors:
            for partition in owned(member):
                wait_until(lambda m=member, p=partition: poll_or_none(m, p) is not None, "it is served")  # type: ignore[misc]
                others = [one for one in survivors if one is not member]
                assert all(poll_or_none(one, partition) is None for one in others)
    finally:
        for member in members:
            member.close()


def owned_or_none(member: WireConnection) -> list[int]:
    try:
        return owned(member)
    except ShardServerError:
        return []


def poll_or_none(member: WireConnection, partition: int) -> Any:
    try:
        return poll(member, partition)
    except ShardServerError:
        return None
