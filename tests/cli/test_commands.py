"""The commands: what they print, and their exit codes."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from apache_iggy import IggyClient

from shardserver.cli.main import main
from tests.server_process import PASSWORD, ServerProcess


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHARDSERVER_ROOT_PASSWORD", "SHARDSERVER_ROOT_PASSWORD_FILE", "SHARDSERVER_SERVER_DATA"):
        monkeypatch.delenv(name, raising=False)


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == version("shardserver") + "\n"


@pytest.mark.parametrize("arguments", [["--nonsense"], ["dance"], ["check-config"]])
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: shardserver" in capsys.readouterr().err


def test_check_config_judges_the_file_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDSERVER_SERVER_PORT", "nonsense")
    path = tmp_path / "some.toml"
    path.write_text("[server]\nport = 1234\n")
    assert run(capsys, "check-config", str(path)) == (0, f"{path}: fine\n", "")
    path.write_text("[server]\nprot = 1234\n")
    sentence = f"shardserver: unknown key server.prot in {path}; did you mean server.port?\n"
    assert run(capsys, "check-config", str(path)) == (1, "", sentence)


def test_print_config_shows_each_source_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[log]\nlevel = "debug"\n')
    monkeypatch.setenv("SHARDSERVER_ROOT_PASSWORD", "topsecret")
    monkeypatch.setenv("SHARDSERVER_SERVER_PORT", "1234")
    monkeypatch.setenv("SHARDSERVER_SERVER_PROT", "1234")
    code, printed, warned = run(capsys, "--config", str(path), "--host", "::1", "print-config")
    lines = printed.splitlines()
    assert code == 0 and "topsecret" not in printed + warned
    assert f'level = "debug"  # {path}' in lines and 'host = "::1"  # flag' in lines
    assert "port = 1234  # SHARDSERVER_SERVER_PORT" in lines and "files = 8  # default" in lines
    assert "warning: unknown variable SHARDSERVER_SERVER_PROT; did you mean SHARDSERVER_SERVER_PORT?" in warned


@pytest.mark.parametrize("command", ["status", "stats"])
def test_no_server_is_a_sentence(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = f"shardserver: no server runs on {tmp_path}\n"
    assert run(capsys, command, "--data", str(tmp_path)) == (1, "", sentence)
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left_by_a_killed_server:
        left_by_a_killed_server.bind(str(tmp_path / "run" / "control.sock"))
    assert run(capsys, command, "--data", str(tmp_path)) == (1, "", sentence)


class AnsweringServer:
    """Keeps the control socket's contract for one request: reads a line, answers what it was given."""

    def __init__(self, data: Path) -> None:
        (data / "run").mkdir()
        self.data, self.answer, self.request = str(data), b"", b""
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(data / "run" / "control.sock"))
        self.listening.listen()

    def serve_once(self, answer: bytes) -> threading.Thread:
        def serve() -> None:
            client, _ = self.listening.accept()
            with client, client.makefile("rb") as lines:
                self.request = lines.readline()
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        return thread


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[AnsweringServer]:
    made = AnsweringServer(tmp_path)
    yield made
    made.listening.close()


@pytest.mark.parametrize(
    ("state", "degraded", "code", "shown"),
    [
        ("starting", False, 4, "starting\n"),
        ("recovering", False, 5, "recovering\n"),
        ("recovering", True, 5, "recovering\n"),
        ("ready", False, 0, "ready\n"),
        ("ready", True, 3, "degraded\n"),
        ("stopping", False, 6, "stopping\n"),
    ],
)
def test_status_has_an_exit_code_for_each_state(
    answering: AnsweringServer, capsys: pytest.CaptureFixture[str], state: str, degraded: bool, code: int, shown: str
) -> None:
    thread = answering.serve_once(json.dumps({"state": state, "degraded": degraded}).encode() + b"\n")
    assert run(capsys, "status", "--data", answering.data) == (code, shown, "")
    thread.join()
    assert json.loads(answering.request) == {"command": "status"}


def test_status_says_how_far_a_recovery_is(answering: AnsweringServer, capsys: pytest.CaptureFixture[str]) -> None:
    recovery = {
        "partitions_done": 3,
        "partitions": 8,
        "read_bytes": 4096,
        "seconds_left": 12.4,
        "waits_for": ["a", "b"],
    }
    answer = {"state": "recovering", "degraded": False, "recovery": recovery}
    thread = answering.serve_once(json.dumps(answer).encode() + b"\n")
    shown = "recovering 3 of 8 partitions, 4096 bytes read, about 12 s left, waits for the lock of a, b\n"
    assert run(capsys, "status", "--data", answering.data) == (5, shown, "")
    thread.join()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [(b"", "ended before it answered"), (b'{"restarts"', "ended before it answered"), (b'{"error": "no"}\n', "no")],
)
def test_an_answer_that_is_none_is_a_sentence(
    answering: AnsweringServer, capsys: pytest.CaptureFixture[str], answer: bytes, sentence: str
) -> None:
    thread = answering.serve_once(answer)
    code, printed, warned = run(capsys, "stats", "--data", answering.data)
    thread.join()
    assert (code, printed) == (1, "") and warned.endswith(f"{sentence}\n")


def test_stats_with_a_shard_that_is_down_ends_with_1(
    answering: AnsweringServer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"restarts": 3, "shards": [{"shard": 0, "error": "the shard died"}]}
    thread = answering.serve_once(json.dumps(answer).encode() + b"\n")
    code, printed, _ = run(capsys, "stats", "--json", "--data", answering.data)
    thread.join()
    assert code == 1 and json.loads(printed) == answer


# The root password


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path / "data")
    made.start()
    yield made
    made.kill()


def can_log_in(address: object, password: str) -> bool:
    async def log_in() -> bool:
        client = IggyClient(str(address))
        await client.connect()
        try:
            await client.login_user("iggy", password)
        except RuntimeError:
            return False
        return True

    return asyncio.run(log_in())


def test_the_root_password_is_reset_on_a_stopped_server_only(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, ready = str(server.data), server.wait_ready()
    code, printed, warned = run(capsys, "reset-root-password", "--data", data)
    assert (code, printed) == (1, "") and f"in use by the server with process id {ready['supervisor_pid']}" in warned
    assert server.wait_ready() == ready and can_log_in(ready["tcp"], PASSWORD)
    assert server.stop() == 0

    code, printed, _ = run(capsys, "reset-root-password", "--data", data)
    assert code == 0 and printed.startswith("new root password: ")
    random = printed.split()[-1]
    server.start()
    address = server.wait_ready()["tcp"]
    assert can_log_in(address, random) and not can_log_in(address, PASSWORD)
    assert server.stop() == 0

    monkeypatch.setenv("SHARDSERVER_ROOT_PASSWORD", "given")
    assert run(capsys, "reset-root-password", "--data", data) == (0, "root password set\n", "")
    server.start()
    address = server.wait_ready()["tcp"]
    assert can_log_in(address, "given") and not can_log_in(address, random)


def test_without_data_there_is_no_password_to_reset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, warned = run(capsys, "reset-root-password", "--data", str(tmp_path / "none"))
    assert code == 1 and "holds no data" in warned and not (tmp_path / "none").exists()


@pytest.mark.parametrize(("given", "fine"), [("ab", False), ("abc", True), ("x" * 100, True), ("ä" * 51, False)])
def test_a_password_has_3_to_100_bytes(
    given: str, fine: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text(given + "\n")
    monkeypatch.setenv("SHARDSERVER_ROOT_PASSWORD_FILE", str(tmp_path / "password"))
    _, _, warned = run(capsys, "reset-root-password", "--data", str(tmp_path / "none"))
    assert ("the root password must have 3 to 100 bytes" in warned) is not fine


def test_a_password_file_that_is_missing_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDSERVER_ROOT_PASSWORD_FILE", str(tmp_path / "password"))
    code, _, warned = run(capsys, "reset-root-password", "--data", str(tmp_path))
    assert code == 1 and "SHARDSERVER_ROOT_PASSWORD_FILE: " in warned and "No such file" in warned
