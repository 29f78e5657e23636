"""The table: what counts as met, what counts for nothing, what is measured once and what does not fit into the time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardserver.bench import suite
from shardserver.bench.case_run import SETTLE_LIMIT_ROUNDS, CaseResult, Pace, use_once
from shardserver.bench.disk_speed import DiskSpeed
from shardserver.bench.latencies import Latencies, empty_counts
from shardserver.bench.load import latency_index
from shardserver.bench.long_rows import p999
from shardserver.bench.outcome import Acknowledged, Measurement, Outcome
from shardserver.bench.plan import LoadSpec
from shardserver.bench.rows import (
    CONSUME_TAIL,
    LONG_ROWS,
    ONE_CONNECTION,
    PARTITIONS_10000,
    PRODUCE_WRITE,
    ROWS,
    SMALL_1000,
    SMALL_FSYNC,
    Case,
    Figure,
    Row,
)
from shardserver.bench.suite import Suite, chosen_rows, line_of, pace_of
from shardserver.bench.verdict import MET, NOT_MET, NOT_RUN, SUSPECT, WRONG, judge
from shardserver.errors import ShardServerError, StorageError


def outcome(
    requests: int = 1000, *, busy: float = 1.0, batch_bytes: int = 0, p50_us: int = 100, refused: int = 0
) -> Outcome:
    """One second of a load; the peer used `busy` of its core."""
    counts = empty_counts()
    counts[latency_index(p50_us * 1000)] = requests
    latencies = Latencies()
    latencies.add_counts(counts)
    measured = Measurement(
        answered=requests,
        window_answered=requests,
        window_batch_bytes=batch_bytes,
        latencies=latencies,
        refused=refused,
    )
    return Outcome(1.0, {"send": measured}, Acknowledged.none(1), busy, 1, 0.5)


def disk(megabytes: float = 100, p50_us: int = 50) -> DiskSpeed:
    return DiskSpeed("fio", "", megabytes * 1e6, p50_us * 1000, 1, True)


RATE = Row("small sends", SMALL_FSYNC, Figure.RATE, least=0.6)


@pytest.mark.parametrize("ours, state", [(60_000, MET), (59_000, NOT_MET)])
def test_a_rate_with_both_cores_busy_is_judged_by_its_ratio(ours: int, state: str) -> None:
    found = judge(RATE, CaseResult([outcome(ours)], [outcome(100_000)]), None)
    assert (found.state, found.ours, found.ceiling) == (state, ours, 100_000)
    assert found.ratio == pytest.approx(ours / 100_000)


@pytest.mark.parametrize("busy, echo_busy", [(0.89, 1.0), (1.0, 0.89)])
def test_an_idle_core_makes_the_rate_load_bound_and_the_cost_decides(busy: float, echo_busy: float) -> None:
    cheap = CaseResult([outcome(90_000, busy=busy)], [outcome(90_000, busy=echo_busy)])
    assert judge(RATE, cheap, None).state == f"load-bound: {MET}"
    dear = CaseResult([outcome(50_000, busy=busy)], [outcome(100_000, busy=echo_busy)])
    assert judge(RATE, dear, None).state == f"load-bound: {NOT_MET}"


def test_the_cost_of_a_load_bound_row_is_compared_pair_by_pair() -> None:
    pairs = [(100_000, 153_000), (50_000, 83_300), (66_700, 125_000)]  # 1.53, 1.67, 1.87; their medians 1.87
    ours, echo = ([outcome(value, busy=0.8) for value in values] for values in zip(*pairs, strict=True))
    assert judge(RATE, CaseResult(ours, echo), None).state == f"load-bound: {MET}"
    assert judge(replace(RATE, least=0.61), CaseResult(ours, echo), None).state == f"load-bound: {NOT_MET}"


def test_an_echo_that_costs_too_much_is_suspect_for_small_frames_only() -> None:
    slow = CaseResult([outcome(60_000)], [outcome(66_000)])  # 15.2 µs a request
    assert judge(RATE, slow, None).state == SUSPECT
    assert judge(replace(RATE, case=CONSUME_TAIL), slow, None).state == MET


def test_an_echo_with_one_request_in_flight_may_cost_its_wake_ups() -> None:
    slow = CaseResult([outcome(p50_us=100)], [outcome(30_000, p50_us=50)], [disk(p50_us=50)])  # 33 µs a request
    row = Row("one", ONE_CONNECTION, Figure.P50, most=1.8)
    assert judge(row, slow, None).state == MET
    deep = replace(ONE_CONNECTION, spec=replace(ONE_CONNECTION.spec, depth=16))
    assert judge(replace(row, case=deep), slow, None).state == SUSPECT


def test_the_median_of_the_repeats_counts_and_the_spread_is_told() -> None:
    result = CaseResult([outcome(value) for value in (10, 70_000, 65_000)], [outcome(100_000)] * 3)
    found = judge(RATE, result, None)
    assert (found.state, found.ratio, found.high) == (MET, 0.65, 0.7)
    assert found.low is not None and found.low < 0.001


def test_wrong_data_or_a_refusal_is_never_met() -> None:
    result = CaseResult([outcome(90_000)], [outcome(100_000)], faults=["partition 3: 9 messages, it holds 8"])
    found = judge(RATE, result, None)
    assert found.state == WRONG and "partition 3" in found.note


def test_a_cost_is_met_up_to_its_limit() -> None:
    row = Row("cpu", SMALL_FSYNC, Figure.CPU, most=1.5)
    assert judge(row, CaseResult([outcome(80_000)], [outcome(100_000)]), None).state == MET
    assert judge(row, CaseResult([outcome(66_000)], [outcome(100_000)]), None).state == NOT_MET


def test_one_connection_is_compared_with_echo_and_disk_together() -> None:
    row = Row("one", ONE_CONNECTION, Figure.P50, most=1.8)
    found = judge(row, CaseResult([outcome(p50_us=179)], [outcome(80_000, p50_us=50)], [disk(p50_us=50)]), None)
    assert found.state == MET and found.ceiling == pytest.approx(100, rel=0.01)
    found = judge(row, CaseResult([outcome(p50_us=182)], [outcome(80_000, p50_us=50)], [disk(p50_us=50)]), None)
    assert found.state == NOT_MET


def test_journal_writes_are_counted_by_answered_request() -> None:
    row = Row("journal", SMALL_FSYNC, Figure.JOURNAL_WRITES, most=0.1)
    result = CaseResult([outcome()], [outcome()], journal_writes=10, answered=100)
    assert judge(row, result, None).state == MET
    assert judge(row, replace(result, journal_writes=11), None).state == NOT_MET


@pytest.mark.parametrize(
    "megabytes, echo_megabytes, state", [(75, 50, MET), (46, 99, MET), (46, 101, NOT_MET), (44, 99, NOT_MET)]
)
def test_a_share_of_the_echo_is_enough_where_the_disk_is_faster(
    megabytes: int, echo_megabytes: int, state: str
) -> None:
    row = Row("write", PRODUCE_WRITE, Figure.BYTES, least=0.75, least_of_echo=0.45)
    ours, echo = outcome(batch_bytes=megabytes * 1_000_000), outcome(batch_bytes=echo_megabytes * 1_000_000)
    assert judge(row, CaseResult([ours], [echo], [disk(100)]), None).state == state


def test_another_case_may_be_the_ceiling() -> None:
    row = Row("1000 : 16", SMALL_1000, Figure.RATE, least=0.8, against=SMALL_FSYNC)
    many, few = CaseResult([outcome(81_000)]), CaseResult([outcome(100_000)], faults=[])
    assert judge(row, many, few).state == MET
    assert judge(row, CaseResult([outcome(79_000)]), few).state == NOT_MET
    assert judge(row, many, replace(few, faults=["lost"])).state == WRONG


def test_what_was_not_measured_is_not_met() -> None:
    assert judge(RATE, CaseResult([outcome(0)], [outcome(0)]), None).state != MET
    row = Row("one", ONE_CONNECTION, Figure.P50, most=1.8)
    assert judge(row, CaseResult([outcome(0)], [outcome()], [disk()]), None).state == NOT_RUN


# The suite


class Bench:
    """Stands in for run_case: each case takes `takes_s` on a clock that only it moves."""

    def __init__(self, takes_s: float = 60.0, error: Exception | None = None) -> None:
        self.now, self.takes_s, self.error = 0.0, takes_s, error
        self.cases: list[Case] = []

    def clock(self) -> float:
        return self.now

    def measure(self, case: Case, directory: Path, pace: Pace) -> CaseResult:
        self.cases.append(case)
        self.now += self.takes_s
        if self.error is not None:
            raise self.error
        return CaseResult([outcome(90_000)], [outcome(100_000)], [disk()], 1, 100)

    def suite(self, budget_s: float) -> Suite:
        return Suite(Path(), Pace(1, 0.2), budget_s, self.clock, self.measure)


def test_rows_of_one_case_share_its_measurement() -> None:
    bench = Bench()
    suite = bench.suite(10_000)
    found = [suite.verdict(row) for row in ROWS]
    assert len(bench.cases) == len(set(bench.cases)) < len(ROWS) + 2
    assert NOT_RUN not in {one.state for one in found}


def test_no_case_begins_that_would_not_fit_into_the_time() -> None:
    bench = Bench(takes_s=60)
    suite = bench.suite(budget_s=150)
    found = [suite.verdict(row) for row in ROWS]
    assert len(bench.cases) == 2 and bench.now <= 150
    late = [one for one in found if one.state == NOT_RUN]
    assert late and all("150 s are over" in one.note for one in late)


def test_a_case_that_fails_says_why_and_the_others_run() -> None:
    bench = Bench(error=StorageError("no room"))
    found = [bench.suite(10_000).verdict(row) for row in ROWS[:3]]
    assert all((one.state, one.note) == (NOT_RUN, "it failed: no room") for one in found)


def test_short_and_long_forms_have_their_rows() -> None:
    quick = chosen_rows(is_long=False, seconds=2)
    assert quick and set(quick) < set(ROWS) == set(chosen_rows(is_long=False, seconds=60))
    assert chosen_rows(is_long=True, seconds=60) == LONG_ROWS
    assert pace_of(60) == Pace(5, 2.0)
    assert pace_of(2) == Pace(1, 0.2)


def test_every_row_has_one_limit_and_what_it_is_compared_with() -> None:
    for row in (*ROWS, *LONG_ROWS):
        assert (row.least is None) != (row.most is None), row.name
        if row.against is not None or row.figure is Figure.JOURNAL_WRITES:
            continue
        assert row.case.disk is not None or row.figure not in (Figure.BYTES, Figure.P50), row.name
        assert row.case.echo or row.figure is Figure.BYTES, row.name
        assert row.case.spec.senders or row.case.fill_bytes, row.name


def test_a_line_has_the_figures_side_by_side() -> None:
    line = line_of(
        judge(RATE, CaseResult([outcome(60_000)], [outcome(100_000)], verified="7 messages read back"), None)
    )
    assert line.split() == [
        *("small", "sends", "60000.0", "100000.0", "requests/s", "0.60", "0.60", "0.60", ">=", "0.6"),
        *("16.7", "/", "10.0", "met", "(7", "messages", "read", "back)"),
    ]  # fmt: skip


@pytest.mark.parametrize("result, code", [(CaseResult(), 0), (CaseResult(faults=["lost"]), 1)])
def test_only_wrong_data_fails_the_command(
    result: CaseResult, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = replace(result, ours=[outcome(1)], echo=[outcome(100_000)], disk=[disk()])
    monkeypatch.setattr(suite, "Suite", lambda *given: Suite(*given, measure=lambda *arguments: measured))
    assert suite.main(["--seconds", "2", "--json"]) == code
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {one["name"] for one in rows} == {row.name for row in ROWS if row.is_quick}


class RestartedSession:
    """As much of a Session as the end of a row needs."""

    def kill_and_restart(self, server: object) -> None: ...

    def faults(self, spec: object) -> list[str]:
        return []


def test_one_stop_of_the_device_decides_nothing_about_a_tail_measured_in_pairs() -> None:
    pairs = [(outcome(p50_us=quiet), outcome(p50_us=busy)) for quiet, busy in [(100, 110), (100, 5000), (100, 150)]]
    found = p999(pairs, RestartedSession(), None, None, "3 archives")  # type: ignore[arg-type]
    assert (found.state, round(found.ours or 0), round(found.ceiling or 0)) == (MET, 150, 100)
    assert [round(one or 0, 1) for one in (found.ratio, found.low, found.high)] == [1.5, 1.1, 50.0]
    assert found.note == "3 archives"
    late = p999([(outcome(), outcome(p50_us=210))], RestartedSession(), None, None, "")  # type: ignore[arg-type]
    assert late.state == NOT_MET
    few = p999([*pairs, (outcome(), outcome(9))], RestartedSession(), None, None, "")  # type: ignore[arg-type]
    assert few.state == NOT_RUN


class StandInSession:
    """Each load makes the server flush so many partitions."""

    def __init__(self, flushed: int) -> None:
        self.flushed, self.loads = flushed, 0

    def run(self, spec: LoadSpec, *, seconds: float) -> None:
        assert (spec.depth, seconds) == (PARTITIONS_10000.settle_depth, PARTITIONS_10000.settle_s)
        self.loads += 1

    def log_figure(self, name: str) -> int:
        assert name == "flushes"
        return self.loads * self.flushed


def loads_before(case: Case, flushed: int) -> int:
    stand_in: Any = StandInSession(flushed)
    use_once(case, case.spec, stand_in, stand_in)
    return int(stand_in.loads)


def test_a_case_in_bursts_is_measured_when_each_partition_was_flushed_twice() -> None:
    assert [loads_before(PARTITIONS_10000, flushed) for flushed in (30_000, 20_000, 19_999, 5_000)] == [1, 1, 2, 4]
    assert loads_before(replace(PARTITIONS_10000, settle_flushes=0), 0) == 1
    assert loads_before(replace(PARTITIONS_10000, settle_s=0), 0) == 0
    with pytest.raises(ShardServerError):
        loads_before(PARTITIONS_10000, 20_000 // SETTLE_LIMIT_ROUNDS - 1)
