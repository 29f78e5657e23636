"""`shardserver placement`: of a running server by its control socket, of a stopped one by its metadata log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from shardserver.cli.placement import placement_text
from shardserver.core import metadata_events as ev
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.planning import Plan
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.metadata_log import MetadataLog
from shardserver.supervisor.cores import Machine
from shardserver.supervisor.data_directory import DataDirectory
from tests.cli.test_commands import AnsweringServer, run
from tests.supervisor.servers import run_server

EVENTS: list[ev.Event] = [
    ev.StreamCreated(0, "orders", 1),
    ev.TopicCreated(0, 0, "events", 1, {}, [1, 2], [0, 1]),
    ev.TopicCreated(0, 1, "audit", 1, {}, [3, 4], [1, 2]),
    ev.PartitionsMoved([ev.PartitionMove(0, 0, 1, 2, 0, 2)]),
]


@pytest.fixture(autouse=True)
def machine_of_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardserver.cli.main.this_machine", lambda: Machine((0, 1)))
    monkeypatch.delenv("SHARDSERVER_SERVER_DATA", raising=False)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The data directory of a stopped server."""
    path = tmp_path / "data"
    data = DataDirectory(str(path))
    data.open(require_data=False)

    async def write() -> None:
        disk = ThreadDisk(1)
        log = MetadataLog(disk, str(path / "metadata"))
        writer = MetadataWriter(log, lambda: 1)
        await writer.recover()
        await writer.change(lambda metadata, context: Plan(EVENTS))
        await log.close()
        await disk.shut_down()

    asyncio.run(write())
    data.close()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir()}


def test_a_stopped_server_s_placement_is_read_and_nothing_is_changed(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stopped / "metadata")
    code, printed, warned = run(capsys, "placement", "--data", str(stopped))
    assert (code, warned) == (0, "")
    assert printed == (
        "stream  topic   partition  shard  term  uid  reason\n"
        "orders  audit           0      1     1    3  balanced\n"
        "orders  audit           1      2     1    4  moves at the next start (its shard is gone)\n"
        "orders  events          0      0     1    1  balanced\n"
        "orders  events          1      0     2    2  moved\n"
        "\n"
        "shard 0: 2 partitions\n"
        "shard 1: 1 partition\n"
        "shard 2 (gone): 1 partition\n"
    )
    assert contents(stopped / "metadata") == before


def test_rules_and_cores_of_the_configuration_give_the_reasons(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[[placement.rules]]\nstream = "orders"\ntopic = "a*"\nshards = [1]\n')
    code, printed, _ = run(capsys, "--config", str(path), "placement", "--json", "--data", str(stopped))
    answer = json.loads(printed)
    assert code == 0 and answer["shards"] == 2 and printed.count("\n") == 1
    assert answer["partitions"][0] == {
        "stream": "orders", "topic": "audit", "partition": 0, "uid": 3, "shard": 1, "term": 1,
        "reason": "rule 1: orders/a*",
    }  # fmt: skip
    assert answer["partitions"][1]["reason"] == "moves at the next start (rule 1: orders/a*)"
    code, _, warned = run(capsys, "--config", str(path), "--cores", "1", "placement", "--data", str(stopped))
    assert code == 1 and "rule 1 (orders/a*) names shard 1; this server has shard 0 alone" in warned


def test_while_its_lock_is_held_the_holder_is_named(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that starts has the lock before its control socket."""
    held = DataDirectory(str(stopped))
    held.open(require_data=True)
    code, _, warned = run(capsys, "placement", "--data", str(stopped))
    held.close()
    assert code == 1 and "in use by the server with process id" in warned


def test_a_server_that_never_came_to_its_metadata_has_no_partitions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataDirectory(str(tmp_path))
    data.open(require_data=False)
    data.close()
    assert run(capsys, "placement", "--data", str(tmp_path)) == (
        0,
        "shard 0: 0 partitions\nshard 1: 0 partitions\n",
        "",
    )
    assert not (tmp_path / "metadata").exists()


def test_without_data_there_is_no_placement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, warned = run(capsys, "placement", "--data", str(tmp_path / "none"))
    assert code == 1 and "holds no data" in warned and not (tmp_path / "none").exists()


def test_a_running_server_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answering = AnsweringServer(tmp_path)
    row = {"stream": "s", "topic": "t", "partition": 0, "uid": 1, "shard": 0, "term": 1, "reason": "balanced"}
    answer = {"partitions": [row], "shards": 1}
    for flags, shown in (
        (["--json"], json.dumps(answer) + "\n"),
        ([], "stream  topic  partition  shard  term  uid  reason\n"
             "s       t              0      0     1    1  balanced\n\nshard 0: 1 partition\n"),
    ):  # fmt: skip
        server = answering.serve_once(json.dumps(answer).encode() + b"\n")
        assert run(capsys, "placement", *flags, "--data", answering.data) == (0, shown, "")
        server.join()
        assert json.loads(answering.request) == {"command": "placement"}
    answering.listening.close()


def test_a_running_server_that_says_no_is_not_read_behind_its_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering = AnsweringServer(tmp_path)
    server = answering.serve_once(b'{"error": "starting"}\n')
    assert run(capsys, "placement", "--data", answering.data) == (1, "", "shardserver: starting\n")
    server.join()
    answering.listening.close()


def test_names_from_clients_cannot_write_to_the_terminal_as_they_like() -> None:
    row: dict[str, Any] = {"stream": "a\nb", "topic": "\x1b[2J", "partition": 0, "uid": 1, "shard": 0, "term": 1}
    lines = placement_text({"partitions": [row | {"reason": "balanced"}], "shards": 1}).splitlines()
    assert lines[1].split() == ["a\\nb", "\\x1b[2J", "0", "0", "1", "1", "balanced"]


def test_a_start_with_a_rule_for_a_missing_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[[placement.rules]]\nstream = "*"\ntopic = "*"\nshards = [5000]\n')
    code, printed = run_server(tmp_path / "data", "--config", str(path))
    assert code == 1 and "rule 1 (*/*) names shard 5000; this server has" in printed
    assert not (tmp_path / "data").exists()
