"""The bench counts what it says: ranks, frames that the server takes, and one short run against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardserver.bench.main import main
from shardserver.bench.percentiles import nearest_rank, summarize
from shardserver.client.batch import encode_batch
from shardserver.protocol.batch import verify_batch
from tests.batches import payloads_of


def test_a_percentile_is_a_measured_value_of_the_nearest_rank() -> None:
    values = list(range(1, 101))
    assert [nearest_rank(values, share) for share in (1, 5_000, 9_900, 10_000)] == [1, 50, 99, 100]
    found = summarize(values)
    assert (found["p50"], found["p99"], found["max"]) == (50, 99, 100)
    assert found["p99.9"] is None  # a hundred values do not tell it


def test_the_client_builds_batches_that_the_server_takes() -> None:
    payloads = [b"", b"one", b"x" * 5000]
    batch = encode_batch(payloads)
    assert verify_batch(bytearray(batch), 3) == 0
    assert payloads_of(batch) == payloads
    damaged = bytearray(batch)
    damaged[-1] ^= 1
    assert verify_batch(damaged, 3) != 0


@pytest.mark.parametrize("mode", ["send", "poll", "send-poll"])
def test_a_short_run_counts_what_the_server_holds(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--mode", mode, "--seconds", "0.3", "--warmup-seconds", "0.1", "--data", str(tmp_path), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["correct"] and report["check"].startswith("equal: ")
    assert int(report["check"].split()[1]) > 0
    assert (report["echo"] is None) == (mode == "send-poll")
    assert not list(tmp_path.iterdir())
