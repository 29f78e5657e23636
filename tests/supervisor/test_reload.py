"""Reading the configuration again: what applies, what waits, and what leaves everything as it was."""

from __future__ import annotations

import io
import os
import signal
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardserver.cli.control import ask
from shardserver.config import Config, NetConfig, PlacementConfig, PlacementRule, ServerConfig, StorageConfig
from shardserver.errors import ConfigError
from shardserver.protocol.addresses import TopicAddress
from shardserver.protocol.system import SCOPE_TOPIC, DescribeOptionsRequest, SnapshotRequest
from shardserver.protocol.table import Command
from shardserver.supervisor import resources
from shardserver.supervisor.reload import Reloader
from tests.server_process import ServerProcess
from tests.sharded_server import ShardedServer, rule
from tests.supervisor.servers import wait_until


class File:
    """A reloader whose file is a Config that the test sets."""

    def __init__(self, config: Config, in_force: Config | None = None) -> None:
        self.config = config
        self.reloader = Reloader(config, in_force or config, 2, lambda: self.config)


def test_the_same_file_changes_nothing() -> None:
    assert File(Config()).reloader.reload().told() == {"applied": {}, "needs_restart": []}


def test_live_keys_apply_and_the_others_wait_by_name_until_the_next_start() -> None:
    file = File(Config())
    file.config = Config(net=NetConfig(max_connections=5), server=ServerConfig(port=1))
    first = file.reloader.reload()
    assert first.told() == {"applied": {"net.max_connections": 5}, "needs_restart": ["server.port"]}
    assert first.message.config == Config(net=NetConfig(max_connections=5))
    assert file.reloader.reload().told() == {"applied": {}, "needs_restart": ["server.port"]}


def test_a_default_that_was_lowered_to_the_machine_stays_so() -> None:
    lowered = Config(storage=StorageConfig(tail_bytes=1 << 20))
    file = File(Config(), lowered)
    file.config = Config(storage=StorageConfig(max_total_bytes=9))
    done = file.reloader.reload()
    assert done.told() == {"applied": {"storage.max_total_bytes": 9}, "needs_restart": []}
    assert done.message.config.storage == StorageConfig(tail_bytes=1 << 20, max_total_bytes=9)


def test_what_is_refused_leaves_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(Config())
    rules = (PlacementRule("*", "*", (2,)),)
    file.config = Config(net=NetConfig(max_connections=5), placement=PlacementConfig(rules=rules))
    with pytest.raises(ConfigError, match="names shard 2"):
        file.reloader.reload()
    file.config = Config(net=NetConfig(max_connections=1 << 20, handover_requests=1))
    monkeypatch.setattr(resources, "raise_descriptor_limit", lambda: 20_000)
    with pytest.raises(ConfigError, match="descriptors do not fit"):
        file.reloader.reload()
    file.config = Config()
    assert file.reloader.reload().told() == {"applied": {}, "needs_restart": []}


def test_more_rules_than_a_line_to_a_shard_holds_need_a_restart() -> None:
    file = File(Config())
    rules = tuple(PlacementRule("s" * 200, "t" * 200, (0,)) for _ in range(1000))
    file.config = Config(placement=PlacementConfig(rules=rules))
    with pytest.raises(ConfigError, match="too many for a reload"):
        file.reloader.reload()


def test_more_connections_leave_descriptors_for_fewer_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "raise_descriptor_limit", lambda: 20_000)
    monkeypatch.setattr(resources, "memory_limit", lambda: (1 << 40, "RAM"))
    file = File(Config())
    before = file.reloader.reload().message.partition_limit
    file.config = Config(net=NetConfig(max_connections=12_000))
    assert 1024 <= file.reloader.reload().message.partition_limit < before


# With a real server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=2, config=rule("s", "*", 0))
    try:
        yield made.serve()
    finally:
        made.kill()


def placed(server: ShardedServer, topic: str) -> int:
    with server.connect() as one:
        one.create_topic("s", topic, 1)
    return server.shard_of("s", topic, 0)


def test_rules_hold_for_new_partitions_on_a_running_server_and_a_wrong_file_changes_nothing(
    server: ShardedServer, tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    with server.connect() as one:
        one.create_stream("s")
    assert placed(server, "before") == 0
    file.write_text("[router]\nring_slots = 64\n" + rule("s", "*", 1))
    done = server.command("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        'applied: placement.rules = [{"stream": "s", "topic": "*", "shards": [1]}]',
        "waits for a restart: router.ring_slots",
    ]
    assert placed(server, "after") == 1 and server.shard_of("s", "before", 0) == 0
    file.write_text("[net]\nhandover_requests = 1\n" + rule("s", "*", 7))
    wrong = server.command("reload")
    assert wrong.returncode == 1 and "names shard 7" in wrong.stderr
    assert "reload_refused" in server.log()
    assert placed(server, "after that") == 1


def test_retention_defaults_hold_at_once_for_topics_without_limits_of_their_own(
    server: ShardedServer, tmp_path: Path
) -> None:
    with server.connect() as one:
        one.create_stream("s")
        one.create_topic("s", "own", 1, {"message_expiry": 1_000_000})
        one.create_topic("s", "none", 1)
    (tmp_path / "server.toml").write_text('[retention]\nmessage_expiry = "5 minutes"\n' + rule("s", "*", 0))
    assert server.command("reload").stdout == 'applied: retention.message_expiry = "5 minutes"\n'
    for one in server.connect_each():
        described = one.ask(Command.DESCRIBE_OPTIONS, DescribeOptionsRequest(SCOPE_TOPIC)).options
        defaults = {option.key: option.default.value for option in described}
        expiries = {name: one.ask(Command.GET_TOPIC, TopicAddress("s", name)).header for name in ("own", "none")}
        assert defaults["message_expiry"] == 300_000_000
        assert {name: header.message_expiry for name, header in expiries.items()} == {"own": 10**6, "none": 3 * 10**8}
        one.close()
    (tmp_path / "server.toml").write_text('[retention]\nmessage_expiry = "soon"\n' + rule("s", "*", 0))
    assert "retention.message_expiry = 'soon'" in server.command("reload").stderr


def test_sighup_reloads_and_a_shard_that_is_started_later_has_it_too(server: ShardedServer, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    with server.connect() as one:
        one.create_stream("s")
    file.write_text("[net]\nmax_connections = 1\n" + rule("s", "*", 1))
    for pid in (server.shard_pid(1), server.pid):  # a shard leaves it to the supervisor
        os.kill(pid, signal.SIGHUP)
    wait_until(lambda: " reloaded " in server.log(), "the reload is logged")
    assert "'net.max_connections': 1" in server.log()
    former = server.kill_shard(0)
    server.wait_ready(other_than=former)
    assert placed(server, "after") == 1
    connected = server.connect_each()
    for one in connected:  # the one that was running and the one that was started
        archive = zipfile.ZipFile(io.BytesIO(one.ask(Command.GET_SNAPSHOT, SnapshotRequest(1, (6,))).archive))
        assert "max_connections = 1\n" in archive.read("server_config.txt").decode()
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as third:
        assert third.recv(1) == b""
    for one in connected:
        one.close()
    assert server.status()["state"] == "ready" and server.stop() == 0


def test_cluster_metadata_names_the_advertised_host_and_port_and_for_what_is_missing_the_sockets(
    server: ShardedServer, tmp_path: Path
) -> None:
    host, _, port = server.address.rpartition(":")

    def named() -> list[tuple[str, int]]:
        nodes = []
        for one in server.connect_each():
            with one:
                nodes += [(node.ip, node.tcp_port) for node in one.ask(Command.GET_CLUSTER_METADATA).nodes]
        return nodes

    assert named() == [(host, int(port))] * 2
    for text, expected in ("broker", ("broker", int(port))), (":9", (host, 9)), ("broker:9", ("broker", 9)):
        (tmp_path / "server.toml").write_text(f'[server]\nadvertised_address = "{text}"\n{rule("s", "*", 0)}')
        assert server.command("reload").stdout == f'applied: server.advertised_address = "{text}"\n'
        assert named() == [expected] * 2


def test_a_server_without_a_file_says_so_and_runs_on(tmp_path: Path) -> None:
    made = ServerProcess(tmp_path / "data", "--cores", "1", module="tests.supervisor.stand_in_server")
    try:
        made.start()
        made.wait_ready()
        with pytest.raises(ConfigError, match="without --config"):
            ask(str(made.data), "reload")
        assert made.stop() == 0
    finally:
        made.kill()
