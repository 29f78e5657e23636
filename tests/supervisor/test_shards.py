"""Four shards under one supervisor, as real processes: joined, opened, killed, stopped. The shards are stand-ins."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardserver.cli.control import ask
from shardserver.errors import ConfigError
from tests.server_process import ServerProcess
from tests.supervisor.servers import children, command, events, is_running, wait_until

FOUR = ("--cores", "4", "--log-level", "info", "--log-format", "json")
Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[ServerProcess] = []

    def started(*flags: str) -> ServerProcess:
        made.append(ServerProcess(tmp_path / "data", *FOUR, *flags, module="tests.supervisor.stand_in_server"))
        made[0].start()
        return made[0]

    yield started
    for server in made:
        server.kill()


def pids(content: dict[str, Any]) -> list[int]:
    return [int(one["pid"]) for one in content["shards"]]


def stats(server: ServerProcess) -> list[dict[str, Any]]:
    return list(ask(str(server.data), "stats")["shards"])


def status(server: ServerProcess) -> dict[str, Any]:
    try:
        return ask(str(server.data), "status")
    except ConfigError:  # not there yet
        return {"state": "none", "shards": []}


def states(server: ServerProcess) -> list[str]:
    return [one["state"] for one in status(server)["shards"]]


def everyone_met(server: ServerProcess, times: dict[int, int] | None = None) -> Callable[[], bool]:
    """Each shard was greeted by each other one, on its ring and in its inbox; `times` by those started again."""

    def met() -> bool:
        for shard in stats(server):
            others = [number for number in range(4) if number != shard.get("shard")]
            expected = sorted(number for number in others for _ in range((times or {}).get(number, 1)))
            if shard.get("greeted_by") != expected or shard["peers"] != others or shard["beating"] != others:
                return False
        return True

    return met


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def connect(tcp: object) -> int:
    """The number of the shard that accepted."""
    host, _, port = str(tcp).rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        return int(client.makefile().readline())


def test_four_shards_meet_each_other_and_share_the_cores(start: Start) -> None:
    server = start()
    ready = server.wait_ready()
    assert [one["shard"] for one in ready["shards"]] == [0, 1, 2, 3] and len(set(pids(ready))) == 4
    wait_until(everyone_met(server), "greetings of all by all")
    found = stats(server)
    for shard in found:
        assert shard["heard"] == {str(n): [n] for n in range(4) if n != shard["shard"]}
        assert (shard["shards"], shard["has_listener"], shard["gone"]) == (4, True, [])
        assert str(shard["port"]) == str(ready["tcp"]).rpartition(":")[2] and shard["partition_limit"] >= 1024
    assert {connect(ready["tcp"]) for _ in range(100)} == {0, 1, 2, 3}
    server.signal(signal.SIGTERM)
    code, printed = server.wait()
    assert code == 0 and os.listdir(server.data / "run") == []
    found_events = events(printed)
    assert found_events["resources"]["shards"] == 4
    if len(os.sched_getaffinity(0)) < 4:
        assert found_events["shards_share_cores"]["shards"] == 4


def test_only_the_shards_that_are_named_accept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDSERVER_NET_ACCEPT_SHARDS", "1,3")
    server = start()
    ready = server.wait_ready()
    assert [one["has_listener"] for one in stats(server)] == [False, True, False, True]
    assert {connect(ready["tcp"]) for _ in range(60)} == {1, 3}
    assert server.stop() == 0


def test_a_shard_that_is_not_there_cannot_accept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDSERVER_NET_ACCEPT_SHARDS", "1,4")
    code, printed = start().wait()
    assert code == 1 and "net.accept_shards = '1,4': 4-4 are not all among shards 0-3" in printed


def test_nobody_accepts_before_all_have_recovered(start: Start, tmp_path: Path) -> None:
    hold = tmp_path / "data" / "hold-2"
    hold.parent.mkdir()
    hold.touch()
    server = start()
    wait_until(lambda: states(server) == ["recovered", "recovered", "recovering", "recovered"], "all but one")
    assert status(server)["state"] == "recovering" and not (server.data / "run" / "ready.json").exists()
    with socket.create_connection(status(server)["tcp"].rsplit(":", 1)) as early:  # waits in the kernel
        early.setblocking(False)
        with pytest.raises(BlockingIOError):
            early.recv(1)
        hold.unlink()
        server.wait_ready()
        early.setblocking(True)
        assert early.recv(16)
    assert server.stop() == 0


def test_a_killed_shard_meets_all_others_anew_and_leaves_nothing_in_the_supervisor(start: Start) -> None:
    server = start()
    ready = server.wait_ready()
    wait_until(everyone_met(server), "greetings of all by all")
    held = open_descriptors(int(ready["supervisor_pid"]))
    for restart in (1, 2):
        former = pids(server.wait_ready())
        os.kill(former[2], signal.SIGKILL)
        wait_until(lambda former=former: pids(server.wait_ready()) != former, "a new ready file")
        wait_until(everyone_met(server, {2: 1 + restart}), "greetings of the new one")
        found = stats(server)
        assert [shard["gone"] for shard in found] == [[2] * restart, [2] * restart, [], [2] * restart]
        assert found[2]["heard"] == {"0": [0], "1": [1], "3": [3]}  # nothing of before: its rings are new
        again = pids(server.wait_ready())
        assert [a == b for a, b in zip(again, former, strict=True)] == [True, True, False, True]
    # The last client of the control socket may still be there.
    wait_until(lambda: open_descriptors(int(ready["supervisor_pid"])) <= held, "no more descriptors than before")
    assert [one["restarts"] for one in status(server)["shards"]] == [0, 0, 2, 0]
    assert server.stop() == 0


def test_a_shard_that_comes_back_serves_while_another_is_down(start: Start, tmp_path: Path) -> None:
    server = start()
    first = pids(server.wait_ready())
    (tmp_path / "data" / "hold-1").touch()
    os.kill(first[1], signal.SIGKILL)
    os.kill(first[3], signal.SIGKILL)
    wait_until(lambda: states(server) == ["ready", "recovering", "ready", "ready"], "shard 3 serves, shard 1 recovers")
    ready = server.wait_ready()
    assert [one["shard"] for one in ready["shards"]] == [0, 2, 3] and ready["shards"][2]["pid"] != first[3]
    (tmp_path / "data" / "hold-1").unlink()
    wait_until(lambda: len(server.wait_ready()["shards"]) == 4, "all four in the ready file")
    assert server.stop() == 0


def test_a_stalled_shard_is_killed_and_started_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDSERVER_SERVER_STALL_LIMIT_S", "2")
    server = start()
    former = pids(server.wait_ready())
    os.kill(former[1], signal.SIGSTOP)
    wait_until(lambda: pids(server.wait_ready()) != former, "another process")
    again = pids(server.wait_ready())
    assert [a == b for a, b in zip(again, former, strict=True)] == [True, False, True, True]
    assert not is_running(former[1])
    server.signal(signal.SIGTERM)
    code, printed = server.wait()
    stalled = events(printed)["shard_stalled"]
    assert code == 0 and (stalled["shard"], stalled["pid"], stalled["state"]) == (1, former[1], "ready")
    assert stalled["silent_s"] >= 2


def test_a_recovering_shard_is_judged_by_its_own_limit(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDSERVER_SERVER_STALL_LIMIT_S", "0")
    monkeypatch.setenv("SHARDSERVER_SERVER_RECOVERY_STALL_LIMIT_S", "6")
    server = start()
    former = pids(server.wait_ready())
    (tmp_path / "data" / "hold-0").touch()
    os.kill(former[0], signal.SIGKILL)
    wait_until(lambda: states(server)[0] == "recovering", "a shard that recovers")
    recovering = status(server)["shards"][0]["pid"]
    os.kill(former[3], signal.SIGSTOP)  # never judged: its limit is 0
    os.kill(recovering, signal.SIGSTOP)
    wait_until(lambda: not is_running(recovering), "the end of the stalled recovery")
    assert is_running(former[3])
    server.kill()


def test_a_killed_supervisor_takes_all_shards_along(start: Start) -> None:
    shared = set(os.listdir("/dev/shm"))
    server = start()
    ready = server.wait_ready()
    tree = children(int(ready["supervisor_pid"]))
    assert set(pids(ready)) <= set(tree)
    os.kill(pids(ready)[3], signal.SIGSTOP)  # the kernel's signal reaches a stopped one too
    server.kill()
    wait_until(lambda: not any(map(is_running, tree)), "the end of all its children")
    assert set(os.listdir("/dev/shm")) <= shared


def test_commands_for_the_metadata_go_to_shard_0_with_their_arguments(start: Start) -> None:
    server = start()
    server.wait_ready()
    data, name = str(server.data), "ü" * 127
    moved = ask(data, "move-partition", stream=name, topic=name, partition=3, to_shard=1)
    assert moved == {
        "command": "move-partition",
        "arguments": {"stream": name, "topic": name, "partition": 3, "to_shard": 1},
    }
    assert ask(data, "placement") == {"command": "placement", "arguments": {}}
    code, printed, _ = command("move-partition", "orders", "eu", "7", "--to-shard", "2", "--data", data, "--json")
    assert code == 0 and '"arguments": {"stream": "orders", "topic": "eu", "partition": 7, "to_shard": 2}' in printed
    code, printed, told = command("rebalance", "--by", "load", "--dry-run", "--data", data)
    assert (code, printed) == (1, "") and "the query failed: ValueError('no')" in told
    assert server.stop() == 0


def test_only_who_dies_while_clients_are_there_leaves_what_peers_would_ask_again_for(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "hold-1").touch()
    server = start()
    wait_until(lambda: states(server) == ["recovered", "recovering", "recovered", "recovered"], "three of four")
    former = [one["pid"] for one in status(server)["shards"]]
    os.kill(former[2], signal.SIGKILL)
    wait_until(lambda: status(server)["shards"][2]["restarts"] == 1, "a restart")
    (tmp_path / "data" / "hold-1").unlink()
    server.wait_ready()
    os.kill(former[3], signal.SIGKILL)
    wait_until(lambda: pids(server.wait_ready())[3:] not in ([], [former[3]]), "another process")
    assert [one["is_restart"] for one in stats(server)] == [False, False, False, True]
    assert server.stop() == 0
