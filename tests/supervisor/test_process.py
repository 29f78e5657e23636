"""Supervisor and shard as real processes: start, restart, stop, kill."""

import fcntl
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardserver.cli.control import ask
from shardserver.errors import ConfigError
from tests.server_process import ServerProcess
from tests.supervisor.servers import (
    WrappedServer,
    children,
    command,
    events,
    is_running,
    run_server,
    wait_until,
)

# What holds for one process holds for each; servers of several stand in test_shards.py and tests/end_to_end/.
INFO = ("--log-level", "info", "--log-format", "json", "--cores", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def servers() -> Iterator[list[ServerProcess]]:
    """Whatever is in it at the end is killed."""
    made: list[ServerProcess] = []
    yield made
    for server in made:
        server.kill()


@pytest.fixture
def server(data: Path, servers: list[ServerProcess]) -> ServerProcess:
    servers.append(ServerProcess(data, *INFO))
    servers[0].start()
    return servers[0]


def shard_pid(ready: dict[str, Any]) -> int:
    return int(ready["shards"][0]["pid"])


def lock_journal(data: Path) -> int:
    """As if writes of a dead process were still on their way: recovery waits for this lock. Gives its descriptor."""
    journal = next((data / "shards" / "0" / "journal").iterdir())
    descriptor = os.open(journal, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


# Ready


def test_ready_names_what_scripts_need_and_the_event_says_which_limit_decided(server: ServerProcess) -> None:
    ready = server.wait_ready()
    assert set(ready) == {"tcp", "shards", "supervisor_pid", "disk_engine", "durability"}
    assert set(ready["shards"][0]) == {"shard", "pid", "core"}
    assert os.sched_getaffinity(shard_pid(ready)) == {ready["shards"][0]["core"]}
    assert b"glibc.malloc.hugetlb=1" in Path(f"/proc/{shard_pid(ready)}/environ").read_bytes()
    server.signal(signal.SIGTERM)
    code, printed = server.wait()
    found = events(printed)
    assert code == 0 and not (server.data / "run" / "ready.json").exists()
    assert {name: found["ready"][name] for name in ready} == ready
    assert found["ready"]["shards_served"] == 1
    assert found["ready"]["cores_allowed"] >= 1 and "cores" in found["ready"]["cores_decided_by"]
    assert found["resources"]["memory_needed_bytes"] <= found["resources"]["memory_limit_bytes"]


def test_core_is_null_when_unpinned(data: Path, servers: list[ServerProcess]) -> None:
    servers.append(ServerProcess(data, "--pin", "off"))
    servers[0].start()
    ready = servers[0].wait_ready()
    assert ready["shards"][0]["core"] is None
    assert os.sched_getaffinity(shard_pid(ready)) == os.sched_getaffinity(0)


def test_an_affinity_that_was_taken_away_is_put_back(data: Path, servers: list[ServerProcess]) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one usable core: there is no other affinity to give")
    servers.append(ServerProcess(data, module="tests.supervisor.eager_server"))
    servers[0].start()
    ready = servers[0].wait_ready()
    for thread in os.listdir(f"/proc/{shard_pid(ready)}/task"):
        os.sched_setaffinity(int(thread), os.sched_getaffinity(0))
    wanted = {ready["shards"][0]["core"]}
    wait_until(
        lambda: all(
            os.sched_getaffinity(int(thread)) == wanted for thread in os.listdir(f"/proc/{shard_pid(ready)}/task")
        ),
        "all threads on their core again",
    )


def test_a_restarted_shard_is_in_ready_json_and_in_the_status(server: ServerProcess) -> None:
    first = server.wait_ready()
    os.kill(shard_pid(first), signal.SIGKILL)
    again = server.wait_ready(other_than=shard_pid(first))
    assert json.loads((server.data / "run" / "state.json").read_text())["state"] == "ready"
    assert again == first | {"shards": [first["shards"][0] | {"pid": shard_pid(again)}]}
    status = ask(str(server.data), "status")
    assert (status["state"], status["shards"][0]["restarts"]) == ("ready", 1)
    assert ask(str(server.data), "stats")["restarts"] == 1
    assert server.stop() == 0


# Stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_exit_code_0_and_leaves_nothing(server: ServerProcess, number: signal.Signals) -> None:
    shared = set(os.listdir("/dev/shm"))
    ready = server.wait_ready()
    server.signal(number)
    code, _ = server.wait()
    assert code == 0 and not is_running(shard_pid(ready))
    assert os.listdir(server.data / "run") == []
    assert set(os.listdir("/dev/shm")) <= shared


@pytest.mark.parametrize("state", ["starting", "ready"])
def test_a_terminal_s_interrupt_of_the_whole_group_is_a_clean_stop(
    data: Path, servers: list[ServerProcess], state: str
) -> None:
    group = WrappedServer(data, *INFO, wrapper=["setsid"])  # becomes the server: nothing is forked
    servers.append(group)
    group.start()
    wait_until(lambda: state_of(group) == state, state)
    os.killpg(group.pid, signal.SIGINT)
    code, printed = group.wait()
    assert code == 0 and "Traceback" not in printed and "shard_died" not in events(printed)


def test_a_stop_during_recovery_ends_with_exit_code_0(server: ServerProcess) -> None:
    server.wait_ready()
    server.kill()
    held = lock_journal(server.data)
    server.start()
    wait_until(lambda: state_of(server) == "recovering", "a shard that recovers")
    assert not (server.data / "run" / "ready.json").exists()  # the killed server's is gone
    assert ask(str(server.data), "stats")["shards"] == [{"shard": 0, "state": "recovering"}]
    told = json.loads((server.data / "run" / "state.json").read_text())
    assert told["state"] == "recovering" and told["recovery"].keys() == {
        "partitions_done", "partitions", "read_bytes", "seconds_left", "waits_for"
    }  # fmt: skip
    code, shown, _ = command("status", "--data", str(server.data))
    assert code == 5 and shown.startswith("recovering 0 of 0 partitions, 0 bytes read")
    assert server.stop() == 0
    os.close(held)


def state_of(server: ServerProcess) -> str:
    try:
        return str(ask(str(server.data), "status")["state"])
    except ConfigError:
        return "none"


def test_a_second_signal_ends_at_once_with_exit_code_1(server: ServerProcess) -> None:
    ready = server.wait_ready()
    os.kill(shard_pid(ready), signal.SIGSTOP)  # it will not answer the first
    server.signal(signal.SIGTERM)
    wait_until(lambda: state_of(server) == "stopping", "a server that stops")
    assert command("status", "--data", str(server.data))[:2] == (6, "stopping\n")
    server.signal(signal.SIGINT)
    code, printed = server.wait()
    assert code == 1 and "second_signal" in events(printed)
    assert not is_running(shard_pid(ready)) and os.listdir(server.data / "run") == []


def test_a_shard_that_does_not_stop_in_time_is_killed(
    data: Path, servers: list[ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDSERVER_SERVER_SHUTDOWN_DEADLINE_S", "0.1")
    servers.append(ServerProcess(data, *INFO))
    servers[0].start()
    ready = servers[0].wait_ready()
    os.kill(shard_pid(ready), signal.SIGSTOP)
    servers[0].signal(signal.SIGTERM)
    code, printed = servers[0].wait()
    assert code == 1 and "not_stopped_in_time" in events(printed) and not is_running(shard_pid(ready))


def test_a_killed_supervisor_takes_its_shard_along(server: ServerProcess) -> None:
    shared = set(os.listdir("/dev/shm"))
    ready = server.wait_ready()
    tree = children(int(ready["supervisor_pid"]))
    assert shard_pid(ready) in tree
    server.kill()
    wait_until(lambda: not any(map(is_running, tree)), "the end of all its children")
    assert set(os.listdir("/dev/shm")) <= shared
    server.start()
    assert shard_pid(server.wait_ready(other_than=shard_pid(ready))) not in tree
    assert server.stop() == 0


# Process 1


@pytest.fixture
def first_process(data: Path, servers: list[ServerProcess]) -> WrappedServer:
    """The server as process 1 of its own namespace, with orphans that end before and after it catches signals."""
    if os.geteuid() != 0:
        pytest.skip("a process namespace needs root")
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no process namespace here: {tried.stderr.strip()}")
    orphans = '(sleep 0.01 & sleep 2 &) ; exec "$@"'
    made = WrappedServer(
        data, *INFO, wrapper=["unshare", "--kill-child", "--pid", "--fork", "--mount-proc", "sh", "-c", orphans, "sh"]
    )
    servers.append(made)
    made.start()
    return made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_1_hears_signals_and_reaps_orphans(first_process: WrappedServer, number: signal.Signals) -> None:
    assert first_process.wait_ready()["supervisor_pid"] == 1
    (supervisor,) = children(first_process.pid)
    # The shard and multiprocessing's tracker: a zombie is a child too.
    wait_until(lambda: len(children(supervisor)) == 2, "no orphan left")
    os.kill(supervisor, number)
    code, _ = first_process.wait()
    assert code == 0 and os.listdir(first_process.data / "run") == []


def test_process_1_hears_a_signal_before_it_serves(first_process: WrappedServer) -> None:
    lock = first_process.data / "lock"
    wait_until(lambda: lock.exists() and lock.read_text().strip() == "1", "the lock of process 1")
    (supervisor,) = children(first_process.pid)
    os.kill(supervisor, signal.SIGTERM)
    assert first_process.wait()[0] == 0


# Control


def test_queries_that_wait_for_a_shard_that_dies_get_an_error(server: ServerProcess) -> None:
    ready, found = server.wait_ready(), []
    os.kill(shard_pid(ready), signal.SIGSTOP)
    asking = [threading.Thread(target=lambda: found.append(ask(str(server.data), "stats"))) for _ in range(3)]
    for one in asking:
        one.start()
    assert ask(str(server.data), "status")["state"] == "ready"  # answered by the supervisor alone
    os.kill(shard_pid(ready), signal.SIGKILL)
    for one in asking:
        one.join()
    errors = {answer["shards"][0].get("error") for answer in found}
    # A query that came after the death finds it down, or starting again.
    assert errors <= {"the shard died", "the shard is down or starting"} and "the shard died" in errors
    server.wait_ready(other_than=shard_pid(ready))
    assert server.stop() == 0


def test_an_unknown_command_is_an_error(server: ServerProcess) -> None:
    server.wait_ready()
    with pytest.raises(ConfigError, match="unknown command 'dance'"):
        ask(str(server.data), "dance")


def test_status_and_stats_print_a_line_of_json_or_something_to_read(server: ServerProcess) -> None:
    server.wait_ready()
    data = str(server.data)
    assert command("status", "--data", data) == (0, "ready\n", "")
    code, printed, _ = command("status", "--json", "--data", data)
    assert code == 0 and json.loads(printed)["degraded"] is False
    code, printed, _ = command("stats", "--json", "--data", data)
    assert code == 0 and json.loads(printed)["shards"][0]["partitions"] == [] and printed.count("\n") == 1
    assert json.loads(command("stats", "--data", data)[1]).keys() == {"restarts", "shards"}


# The data directory


def test_a_second_server_leaves_the_ready_file_of_the_first(server: ServerProcess) -> None:
    ready = server.wait_ready()
    code, printed = run_server(server.data)
    assert code == 1 and f"in use by the server with process id {ready['supervisor_pid']}" in printed
    assert server.wait_ready() == ready and state_of(server) == "ready"


def test_data_of_an_unknown_format_is_refused_and_left_alone(data: Path) -> None:
    data.mkdir()
    (data / "format").write_text("999\n")
    code, printed = run_server(data)
    assert code == 1 and "has data of format '999'; this server reads format 1" in printed
    assert (data / "format").read_text() == "999\n" and not (data / "metadata").exists()


def test_required_data_is_missed_before_anything_is_made(data: Path) -> None:
    code, printed = run_server(data, "--require-data")
    assert code == 1 and "is the volume mounted?" in printed
    assert not data.exists()


def test_required_data_that_is_there_is_served(server: ServerProcess, servers: list[ServerProcess]) -> None:
    server.wait_ready()
    assert server.stop() == 0
    servers.append(ServerProcess(server.data, "--require-data"))
    servers[1].start()
    servers[1].wait_ready()
    assert servers[1].stop() == 0


def test_foreign_files_in_the_data_directory_stay(data: Path, servers: list[ServerProcess]) -> None:
    (data / "lost+found").mkdir(parents=True)
    (data / "lost+found" / "#12").write_bytes(b"found")
    (data / "notes.txt").write_text("mine")
    servers.append(ServerProcess(data))
    for _ in range(2):
        servers[0].start()
        servers[0].wait_ready()
        assert servers[0].stop() == 0
    assert (data / "lost+found" / "#12").read_bytes() == b"found" and (data / "notes.txt").read_text() == "mine"


def test_a_directory_that_cannot_be_used_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, printed = run_server(tmp_path / "file" / "data")
    assert code == 1 and "cannot be used" in printed and "Traceback" not in printed


# Limits


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one(data: Path, servers: list[ServerProcess]) -> None:
    servers.append(WrappedServer(data, wrapper=["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh"]))
    servers[0].start()
    limits = Path(f"/proc/{shard_pid(servers[0].wait_ready())}/limits").read_text()
    (soft, hard) = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard != "256"


def test_too_few_descriptors_are_refused_with_the_sum(data: Path) -> None:
    code, printed = run_server(data, wrapper=["sh", "-c", 'ulimit -n 1000 && exec "$@"', "sh"])
    assert code == 1 and "net.max_connections 8192" in printed and "do not fit into the limit of 1000" in printed
    assert not data.exists()


def test_too_much_memory_is_refused_with_the_sum(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDSERVER_STORAGE_TAIL_BYTES", str(1 << 40))
    code, printed = run_server(data, "--cores", "1")
    assert (
        code == 1
        and "storage.tail_bytes or journal.files x journal.file_bytes 1048576" in printed
        and "do not fit into the" in printed
    )
    assert not data.exists()
