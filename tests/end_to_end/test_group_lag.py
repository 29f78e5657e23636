"""`shardserver groups --host` beside what the server says of itself: owners, offsets, lag, and who may not ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from shardserver.protocol.addresses import CONSUMER_GROUP, GroupAddress, PartitionAddress
from shardserver.protocol.groups import CreateGroupRequest
from shardserver.protocol.offsets import ACK_COMMITTED, StoreOffsetRequest
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import CreateTopicRequest
from tests.batches import make_batch
from tests.server_process import PASSWORD
from tests.sharded_server import ShardedServer

COUNTS = (5, 3, 0)


def groups(address: str, *flags: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shardserver", "groups", "--host", address, *flags]
    environment = os.environ | {"SHARDSERVER_PASSWORD": password}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def by_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["stream"], row["topic"], row["group"], row["partition"]))


def test_owners_and_lag_over_the_wire_are_those_that_the_server_tells(tmp_path: Path) -> None:
    server = ShardedServer(tmp_path, cores=2).serve()
    try:
        with server.connect() as member:
            member.ask(Command.CREATE_STREAM, CreateStreamRequest("s", {}))
            for topic in "t", "without groups":
                member.ask(Command.CREATE_TOPIC, CreateTopicRequest("s", len(COUNTS), topic, {}))
            for name in "g", "h":
                member.ask(Command.CREATE_GROUP, CreateGroupRequest("s", "t", name))
            for partition, count in enumerate(COUNTS):
                if count:
                    member.send("s", "t", partition, make_batch([b"x"] * count), count)
            member.ask(Command.JOIN_GROUP, GroupAddress("s", "t", "g"))
            member.ask(Command.SYNC_GROUP, GroupAddress("s", "t", "g"))
            place = PartitionAddress(CONSUMER_GROUP, "g", "s", "t", 0)
            member.ask(Command.STORE_OFFSET, StoreOffsetRequest(place, 1, ACK_COMMITTED))
            over_the_wire = json.loads(groups(server.address, "--json").stdout)["groups"]
            assert by_place(over_the_wire) == by_place(server.ask("groups")["groups"])
            found = {
                (row["group"], row["partition"]): (row["committed"], row["end"], row["lag"]) for row in over_the_wire
            }
            assert found["g", 0] == (1, 4, 3) and found["h", 0] == (None, 4, 5)
            assert found["g", 1] == (None, 2, 3) and found["g", 2] == (None, None, 0)
            assert {row["owner"] is None for row in over_the_wire if row["group"] == "g"} == {False}
            shown = groups(server.address)
            assert "committed" in shown.stdout.splitlines()[0] and shown.stderr == ""
    finally:
        server.kill()


def test_a_wrong_password_or_address_is_told_in_a_sentence(tmp_path: Path) -> None:
    server = ShardedServer(tmp_path, cores=1).serve()
    try:
        refused = groups(server.address, password="another one")
        assert (refused.returncode, refused.stdout) == (1, "") and refused.stderr.startswith("shardserver: ")
    finally:
        server.kill()
    gone = groups(server.address)
    assert gone.returncode == 1 and server.address in gone.stderr and "Traceback" not in gone.stderr
    assert "host:port" in groups("nowhere").stderr
