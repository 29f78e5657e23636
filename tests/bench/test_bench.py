"""Short runs of the command against a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardserver.bench import main as command
from shardserver.bench.main import main
from shardserver.client.batch import encode_batch
from shardserver.protocol.batch import verify_batch
from tests.batches import payloads_of

SHORT = ["--seconds", "0.3", "--warmup-seconds", "0.1", "--connections", "3", "--json"]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the report of a run that must succeed and leave nothing behind. The disk has tests of its own."""
    monkeypatch.setattr(command, "measure_jobs", lambda directory, jobs, seconds: [])

    def run(*arguments: str) -> dict[str, Any]:
        assert main([*SHORT, "--data", str(tmp_path), *arguments]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["correct"] and report["faults"] == []
        assert not list(tmp_path.iterdir())
        return report

    return run


def test_the_client_builds_batches_that_the_server_takes() -> None:
    payloads = [b"", b"one", b"x" * 5000]
    batch = encode_batch(payloads)
    assert verify_batch(bytearray(batch), 3) == 0
    assert payloads_of(batch) == payloads
    damaged = bytearray(batch)
    damaged[-1] ^= 1
    assert verify_batch(damaged, 3) != 0


@pytest.mark.parametrize("mode", ["send", "poll", "both"])
def test_a_short_run_is_read_back_as_it_was_acknowledged(run: Any, mode: str) -> None:
    report = run("--mode", mode, "--verify", "--partitions", "2", "--messages", "3000")
    assert report["verified"] and report["acknowledged"] > 0
    for peer in ("server", "echo"):
        kinds = report[peer]["kinds"]
        assert set(kinds) == ({"send", "poll"} if mode == "both" else {mode})
        for row in kinds.values():
            assert row["latencies_recorded"] == row["answered_in_all"] > 0
            assert row["latency_us"]["max"] >= row["latency_us"]["p50"] > 0
    if mode != "poll":
        assert report["acknowledged"] == 3000


def test_sends_of_random_sizes_to_random_partitions_survive_kill_minus_nine(run: Any) -> None:
    report = run("--verify", "--kill", "--message-bytes", "1-2000", "--switch", "--partitions", "5", "--no-echo")
    assert report["settings"]["killed"] and report["acknowledged"] > 0


def test_a_total_is_sent_exactly(run: Any) -> None:
    report = run("--messages", "1000", "--verify", "--no-echo", "--processes", "2")
    assert report["acknowledged"] == 1000
    assert report["server"]["kinds"]["send"]["latencies_recorded"] == 100


def test_an_open_loop_charges_each_request_that_was_due(run: Any) -> None:
    report = run("--rate", "1000", "--no-echo")
    row = report["server"]["kinds"]["send"]
    assert abs(row["latencies_recorded"] - 300) <= 3


def test_a_fault_in_the_data_fails_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure_jobs", lambda directory, jobs, seconds: [])
    monkeypatch.setattr("shardserver.bench.session.find_faults", lambda *arguments: ["partition 0: swapped"])
    assert main([*SHORT, "--data", str(tmp_path), "--verify", "--no-echo"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == ["partition 0: swapped"]


@pytest.mark.parametrize("wrong", [["--message-bytes", "9-3"], ["--kill"], ["--messages-per-batch", "0"]])
def test_wrong_usage_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
