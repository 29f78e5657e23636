"""dump prints what stands in the files, and goes on behind damage."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.admin.stopped_data import PER_BATCH, batch_position, flip, make_stopped, segments
from tests.admin.test_repair import run

BATCHES, UNFLUSHED = 30, 4


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    asyncio.run(make_stopped(path, batches=BATCHES, unflushed=UNFLUSHED))
    return path


def dumped(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    code, printed = run(capsys, "dump", "--data", str(path), *more)
    assert code == 0
    return [json.loads(line) for line in printed.splitlines()]


def test_every_record_is_a_line(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dumped(killed, capsys)
    assert {line["part"] for line in lines} == {"metadata", "journal", "segments"}
    stored = [one["base_offset"] for one in lines if one["part"] == "segments" and "messages" in one]
    assert stored == list(range(0, BATCHES * PER_BATCH, PER_BATCH))
    journaled = [one["base_offset"] for one in lines if one.get("kind") == "batch" and one["uid"] == 2]
    assert journaled == list(range(0, UNFLUSHED * PER_BATCH, PER_BATCH))
    named = [one["event"]["name"] for one in lines if "event" in one and "name" in one["event"]]
    assert named == ["orders", "new"] and "hash" not in json.dumps(lines)


def test_a_part_of_one_partition_is_nothing_else(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dumped(killed, capsys, "--part", "journal", "--partition", "2")
    assert lines and {line["uid"] for line in lines} == {2}


def test_damage_is_a_line_and_no_end(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = segments(killed, 1)[0]
    position = batch_position(file, 4)
    flip(file, position + 600)
    lines = dumped(killed, capsys, "--part", "segments")
    damaged = [one for one in lines if "damage" in one]
    assert damaged == [
        {"part": "segments", "path": str(file.relative_to(killed)), "position": position,
         "damage": "no valid batch with offset 4"}
    ]  # fmt: skip
    stored = [one["base_offset"] for one in lines if "messages" in one]
    assert stored == [one for one in range(0, BATCHES * PER_BATCH, PER_BATCH) if one != 4]
