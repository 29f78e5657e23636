"""Whether a row is met: its ratio, in the median of the repeats, and what makes the ratio count for nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardserver.bench.case_run import CaseResult
from shardserver.bench.disk_speed import DiskSpeed
from shardserver.bench.outcome import Outcome
from shardserver.bench.plan import Shape
from shardserver.bench.rows import Figure, Row
from shardserver.bench.validity import is_load_bound, is_suspect

MET, NOT_MET, LOAD_BOUND, SUSPECT, WRONG, NOT_RUN = (
    "met",
    "not met",
    "load-bound",
    "echo-suspect",
    "WRONG",
    "not run",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """ours, ceiling: medians, in the figure's unit. ratio: median of the repeats' ratios, low and high beside it.

    cpu: µs per request of ours and of the ceiling where it is an echo or a server. state: one of the words above, with
    `load-bound` followed by what the ratio of CPU says. note: a reason, or what was read back.
    """

    name: str
    unit: str
    state: str
    ours: float | None = None
    ceiling: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    limit: str = ""
    cpu_us: float | None = None
    ceiling_cpu_us: float | None = None
    note: str = ""


def judge(row: Row, result: CaseResult, against: CaseResult | None) -> Verdict:
    """against: the result of row.against."""
    pairs = _pairs(row, result, against)
    faults = result.faults + (against.faults if against is not None else [])
    if any(value is None for pair in pairs for value in pair):
        return _not_run(row, "too little was measured", faults)
    known = [(float(ours or 0), float(ceiling or 0)) for ours, ceiling in pairs]
    found = [ours / ceiling if ceiling else ours for ours, ceiling in known]
    ratio = statistics.median(found)
    beside = against.ours if against is not None else result.echo
    return Verdict(
        name=row.name,
        unit=row.figure.value,
        state=WRONG if faults else _state(row, result, ratio, beside),
        ours=statistics.median(ours for ours, _ in known),
        ceiling=statistics.median(ceiling for _, ceiling in known) or None,
        ratio=ratio,
        low=min(found),
        high=max(found),
        limit=limit_text(row),
        cpu_us=median_cpu(result.ours),
        ceiling_cpu_us=median_cpu(beside),
        note="; ".join(faults) or result.verified,
    )


def _not_run(row: Row, reason: str, faults: Sequence[str] = ()) -> Verdict:
    state = WRONG if faults else NOT_RUN
    return Verdict(row.name, row.figure.value, state, limit=limit_text(row), note="; ".join([*faults, reason]))


def not_run(row: Row, reason: str) -> Verdict:
    return _not_run(row, reason)


def limit_text(row: Row) -> str:
    return f">= {row.least:g}" if row.least is not None else f"<= {row.most:g}"


# What is compared, a pair of (ours, ceiling) for each repeat; None: not known.


def _pairs(row: Row, result: CaseResult, against: CaseResult | None) -> list[tuple[float | None, float | None]]:
    if row.figure is Figure.JOURNAL_WRITES:
        return [(result.journal_writes / result.answered if result.answered else None, 0.0)]
    if row.figure is Figure.P50:
        return [_p50_pair(*one) for one in zip(result.ours, result.echo, result.disk, strict=True)]
    take = FIGURES[row.figure]
    if against is None and row.figure is Figure.BYTES:
        speeds = [one.bytes_per_s / 1e6 for one in result.disk]
        return [(take(ours), speed) for ours, speed in zip(result.ours, speeds, strict=True)]
    beside = result.echo if against is None else against.ours
    return [(take(ours), take(other)) for ours, other in zip(result.ours, beside, strict=True)]


FIGURES: dict[Figure, Callable[[Outcome], float | None]] = {
    Figure.RATE: lambda outcome: outcome.requests_per_s,
    Figure.CPU: lambda outcome: outcome.peer_us_per_request,
    Figure.BYTES: lambda outcome: outcome.batch_bytes_per_s / 1e6,
}


def _p50_pair(ours: Outcome, echo: Outcome, disk: DiskSpeed) -> tuple[float | None, float | None]:
    own, echoed = ours.p50_ns(), echo.p50_ns()
    if own is None or echoed is None:
        return None, None
    return own / 1e3, (echoed + disk.p50_ns) / 1e3


def median_cpu(outcomes: Sequence[Outcome]) -> float | None:
    known = [one.peer_us_per_request for one in outcomes if one.peer_us_per_request is not None]
    return statistics.median(known) if known else None


# Met or not


def _state(row: Row, result: CaseResult, ratio: float, beside: Sequence[Outcome]) -> str:
    if _is_echo_judged(row) and any(is_suspect(one, _frame_bytes(row)) for one in result.echo):
        return SUSPECT
    if row.figure is Figure.RATE and any(is_load_bound(*pair) for pair in zip(result.ours, beside, strict=True)):
        return f"{LOAD_BOUND}: {_state_by_cpu(row, result.ours, beside)}"
    if _holds(row, ratio):
        return MET
    return MET if _enough_of_echo(row, result) else NOT_MET


def _is_echo_judged(row: Row) -> bool:
    """Not with one request in flight: the echo wakes up for each, which alone costs more than the limit."""
    uses_echo = row.against is None and row.figure in (Figure.RATE, Figure.CPU, Figure.P50)
    return uses_echo and row.case.spec.connections * row.case.spec.depth > 1


def _frame_bytes(row: Row) -> int:
    """Of the larger of request and reply, about."""
    shape: Shape = row.case.spec.shape
    return shape.largest_batch_bytes + 512


def _holds(row: Row, ratio: float) -> bool:
    if row.least is not None:
        return ratio >= row.least
    return row.most is not None and ratio <= row.most


def _state_by_cpu(row: Row, ours: Sequence[Outcome], beside: Sequence[Outcome]) -> str:
    """A rate of at least x of the ceiling's is, with both cores full, a cost of at most 1/x of the ceiling's.

    The median of the pairs, as in a row of CPU: the two of a pair share the noise of their moment.
    """
    take = FIGURES[Figure.CPU]
    pairs = [(take(own), take(other)) for own, other in zip(ours, beside, strict=True)]
    ratios = [own / other for own, other in pairs if own and other]
    if not ratios or row.least is None:
        return NOT_MET
    return MET if statistics.median(ratios) <= 1 / row.least else NOT_MET


def _enough_of_echo(row: Row, result: CaseResult) -> bool:
    """Where the disk is faster than the network path, a share of the echo's bytes is enough."""
    if row.least_of_echo is None or not result.echo:
        return False
    echo = statistics.median(one.batch_bytes_per_s for one in result.echo)
    disk = statistics.median(one.bytes_per_s for one in result.disk)
    ours = statistics.median(one.batch_bytes_per_s for one in result.ours)
    return disk > echo and ours >= row.least_of_echo * echo
