"""Logging that is set up again while the server runs, and the lines that a snapshot takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from shardserver.supervisor import logs
from shardserver.supervisor.logs import RecentLines

log = logging.getLogger("shardserver.tests")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    for handler in handlers:
        root.removeHandler(handler)
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logs.recent._lines.clear()


def test_another_level_and_format_hold_from_then_on_and_earlier_lines_stay(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "text")
    log.info("not_seen")
    log.warning("seen", extra={"fields": {"shard": 3}})
    logs.configure("info", "json")
    log.info("seen_too", extra={"fields": {"shard": 4}})
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("WARNING  seen shard=3")
    assert json.loads(second)["event"] == "seen_too" and json.loads(second)["shard"] == 4
    assert logs.recent.lines() == [first, second]


def test_recent_lines_are_bounded_in_number_and_length() -> None:
    recent = RecentLines()
    for number in range(RecentLines.MAX_LINES + 5):
        recent.emit(logging.makeLogRecord({"msg": f"{number} " + "x" * 10_000}))
    lines = recent.lines()
    assert len(lines) == RecentLines.MAX_LINES and {len(line) for line in lines} == {RecentLines.MAX_LINE_CHARACTERS}
    assert lines[0].startswith("5 ") and lines[-1].startswith(f"{RecentLines.MAX_LINES + 4} ")
