"""`make bench` and `make bench-long`: the table of rows.py, ours beside the ceilings of the same run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shardserver.bench import background_rows, environment, long_rows
from shardserver.bench.case_run import CaseResult, Pace, run_case
from shardserver.bench.report import environment_lines, number
from shardserver.bench.rows import LONG_ROWS, ROWS, Case, Row
from shardserver.bench.verdict import WRONG, Verdict, judge, not_run
from shardserver.errors import ShardServerError

# A row's window at SECONDS=60 is 2 s, five times in alternation with its ceiling; below 30 it is the quick form.
WINDOW_SHARE, LEAST_WINDOW_S, REPEATS, QUICK_BELOW_S = 1 / 30, 0.2, 5, 30
BUDGET_S = 15 * 60


@dataclass
class Suite:
    """Measures each case once, however many rows look at it; after budget_s begins no more of them."""

    directory: Path
    pace: Pace
    budget_s: float
    clock: Callable[[], float] = time.monotonic
    measure: Callable[[Case, Path, Pace], CaseResult] = run_case
    _results: dict[Case, CaseResult | str] = field(default_factory=dict)
    _longest_s: float = 0.0

    def __post_init__(self) -> None:
        self._end = self.clock() + self.budget_s

    def verdict(self, row: Row) -> Verdict:
        found = [self._result(case) for case in (row.case, row.against) if case is not None]
        for one in found:
            if isinstance(one, str):
                return not_run(row, one)
        known = [one for one in found if isinstance(one, CaseResult)]
        return judge(row, known[0], known[1] if row.against is not None else None)

    def _result(self, case: Case) -> CaseResult | str:
        """A sentence when it was not measured."""
        if case not in self._results:
            self._results[case] = self._measured(case)
        return self._results[case]

    def _measured(self, case: Case) -> CaseResult | str:
        begun = self.clock()
        if begun + self._longest_s > self._end:
            return f"the {self.budget_s:.0f} s are over"
        try:
            return self.measure(case, self.directory, self.pace.for_bursts() if case.in_bursts else self.pace)
        except (ShardServerError, OSError) as error:
            return f"it failed: {error}"
        finally:
            self._longest_s = max(self._longest_s, self.clock() - begun)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m shardserver.bench.suite", description="The table of ceilings.")
    made.add_argument("--seconds", type=float, default=60.0, help="about what a row takes; below 30: few and tiny")
    made.add_argument("--long", action="store_true", help="the rows that take hours instead")
    made.add_argument("--gigabytes", type=float, default=100.0, help="written by the long rows")
    made.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="where servers' directories are made")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def pace_of(seconds: float) -> Pace:
    return Pace(1 if seconds < QUICK_BELOW_S else REPEATS, max(LEAST_WINDOW_S, seconds * WINDOW_SHARE))


def chosen_rows(*, is_long: bool, seconds: float) -> tuple[Row, ...]:
    if is_long:
        return LONG_ROWS
    return ROWS if seconds >= QUICK_BELOW_S else tuple(row for row in ROWS if row.is_quick)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1: a row is wrong or failed. A row that is not met is printed and is no failure of the bench."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(given)
    place = environment.environment(arguments.data)
    pace = pace_of(arguments.seconds)
    suite = Suite(arguments.data, pace, float("inf") if arguments.long else BUDGET_S)
    command = shlex.join(["suite", *given])
    _print(arguments, *environment_lines(place, command), *_pace_lines(pace), "", HEAD)
    verdicts = []
    for verdict in _verdicts(suite, arguments):
        verdicts.append(verdict)
        _print(arguments, line_of(verdict))
    if arguments.json:
        print(json.dumps({"environment": place, "command": command, "rows": [asdict(one) for one in verdicts]}))
    return int(any(one.state == WRONG or one.note.startswith("it failed") for one in verdicts))


def _verdicts(suite: Suite, arguments: argparse.Namespace) -> Iterator[Verdict]:
    """As they come."""
    yield from map(suite.verdict, chosen_rows(is_long=arguments.long, seconds=arguments.seconds))
    if arguments.long:
        size_bytes = int(arguments.gigabytes * 1e9)
        yield from long_rows.verdicts(arguments.data, suite.pace, size_bytes)
        yield from background_rows.verdicts(arguments.data, suite.pace, size_bytes)


def _print(arguments: argparse.Namespace, *lines: str) -> None:
    if not arguments.json:
        print(*lines, sep="\n", flush=True)


def _pace_lines(pace: Pace) -> list[str]:
    return [
        f"  {pace.repeats} x {pace.seconds:g} s, ours and the ceiling in turn: medians, the ratios' lowest and highest",
        "  one shard on one core, the load on the others; CPU: µs a request, ours / the ceiling's",
    ]


HEAD = f"{'':42}{'ours':>10}{'ceiling':>10}  {'unit':15}{'ratio':>7}{'low':>7}{'high':>7}{'limit':>9}{'CPU':>15}  state"


def line_of(verdict: Verdict) -> str:
    digits = 3 if verdict.ours is not None and verdict.ours < 1 else 1
    values = number(verdict.ours, digits=digits) + number(verdict.ceiling)
    ratios = "".join(number(value, 7, 2) for value in (verdict.ratio, verdict.low, verdict.high))
    cpu = f"{number(verdict.cpu_us, 0)} / {number(verdict.ceiling_cpu_us, 0)}"
    note = f" ({verdict.note})" if verdict.note else ""
    return f"{verdict.name:42}{values}  {verdict.unit:15}{ratios}{verdict.limit:>9}{cpu:>15}  {verdict.state}{note}"


if __name__ == "__main__":
    sys.exit(main())
