"""Rows beside a background job: what they conclude when it ran, when it did not, and when they fail."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shardserver.bench import background_rows
from shardserver.bench.background_rows import Repeated, check_archive, judged
from shardserver.bench.case_run import Pace
from shardserver.bench.progress import Progress
from shardserver.bench.verdict import MET, NOT_MET, NOT_RUN, WRONG, Verdict
from shardserver.errors import ShardServerError, StorageError

MOMENT = Progress.begin(0)


def test_a_job_that_did_not_run_meets_no_limit() -> None:
    found = Verdict("", "µs p99.9", MET, note="0 snapshots")
    assert judged(found, 1) == found
    missed = judged(found, 0)
    assert missed.state == NOT_MET and missed.note == "the job did not run in the window: 0 snapshots"
    lost = Verdict("", "µs p99.9", WRONG, note="a message is missing")
    assert judged(lost, 0) == lost


def test_an_action_is_repeated_in_one_thread_until_its_end() -> None:
    thrice, may_go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def act() -> None:
        calls.append(threading.get_ident())
        if len(calls) == 3:
            thrice.set()
            may_go_on.wait()

    repeated = Repeated(act)
    repeated(MOMENT)
    repeated(MOMENT)
    thrice.wait()
    assert not repeated.is_over
    repeated._has_ended.set()
    may_go_on.set()
    repeated.end()
    assert len(calls) == 3 and len(set(calls)) == 1 and repeated.is_over


def test_an_error_of_the_job_is_raised() -> None:
    def fail() -> None:
        raise StorageError("gone")

    repeated = Repeated(fail)
    repeated(MOMENT)
    with pytest.raises(StorageError, match="gone"):
        repeated.end()
    with pytest.raises(ShardServerError, match="no archive"):
        check_archive(b"")


def test_a_row_that_fails_says_so_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise StorageError("no room")

    rows = [name for name in vars(background_rows) if name.startswith("beside_")]
    for row in rows:
        monkeypatch.setattr(background_rows, row, fail)
    found = list(background_rows.verdicts(Path(), Pace(1, 0.2), 10**9))
    assert [one.state for one in found] == [NOT_RUN] * len(rows) and len(rows) == 5
    assert all(one.name and one.note == "it failed: no room" for one in found)
