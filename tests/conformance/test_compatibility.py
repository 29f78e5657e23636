"""The table of docs/compatibility.md counts what was answered in tests that passed, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shardserver.protocol.table import Command
from tests.conformance.compatibility import cell, never_answered, read_results, table
from tests.conformance.tap import Exchange, Results, codes_by_command


def row(passed: bool = True, **commands: list[int | str]) -> dict[str, Any]:
    return {"shards": 1, "hand-over": False, "passed": passed, "commands": commands}


def test_a_command_counts_once_for_each_test_that_saw_it_answered() -> None:
    rows = {"a": row(PING=[0]), "b": row(PING=[0, 40], FLUSH=[5]), "c": row(PING=[40])}
    assert cell(rows, Command.PING) == "2"
    assert cell(rows, Command.FLUSH) == "refused"
    assert cell(rows, Command.GET_ME) == ""


def test_codes_stand_in_order_behind_the_counts() -> None:
    text = table({"python": {"a": row(PING=[4006, 0, "eviction 9", 40])}})
    assert "| 1 | 2 | ping | 1 | 40, 4006, eviction 9 |" in text.splitlines()


def test_what_no_client_was_answered_is_named() -> None:
    missing = never_answered({"python": {"a": row(PING=[0], FLUSH=[5])}})
    assert "flush" in missing and "ping" not in missing


def test_tests_that_failed_do_not_count(tmp_path: Path) -> None:
    Results("python", tmp_path).add({"a": row(PING=[0]), "b": row(passed=False, GET_ME=[0])})
    assert list(read_results(tmp_path)["python"]) == ["a"]


def test_results_of_a_later_run_replace_those_of_the_same_tests(tmp_path: Path) -> None:
    Results("python", tmp_path).add({"a": row(PING=[40]), "b": row()})
    Results("python", tmp_path).add({"a": row(PING=[0])})
    kept = json.loads((tmp_path / "python.json").read_text())
    assert kept["a"]["commands"] == {"PING": [0]} and "b" in kept


def test_codes_are_kept_once_in_the_order_seen() -> None:
    log = [Exchange("PING", 40), Exchange("PING", 0), Exchange("PING", 40)]
    assert codes_by_command(log) == {"PING": [40, 0]}
