"""Measures a case: ours and its ceilings in alternation, then what a server must refuse, kill -9, restart and a full
read-back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from shardserver.bench.disk_speed import DiskSpeed, measure_disk
from shardserver.bench.group import run_spec
from shardserver.bench.outcome import Outcome
from shardserver.bench.own_server import OwnServer
from shardserver.bench.peers import Peer, echo
from shardserver.bench.plan import LoadSpec
from shardserver.bench.processes import cores_beside
from shardserver.bench.refusals import probe_refusals
from shardserver.bench.rows import Case
from shardserver.bench.session import Session
from shardserver.errors import ShardServerError

# The probes of refusals.py take less; under it they meet a server that is busy.
REFUSALS_LOAD_S = 1.0
SETTLE_LIMIT_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Pace:
    """repeats: windows of `seconds` each, ours and the ceiling in turn."""

    repeats: int
    seconds: float

    @property
    def warmup_s(self) -> float:
        return min(0.5, self.seconds / 4)

    def for_bursts(self) -> Pace:
        """Each of three windows as long as all together are else."""
        return Pace(min(3, self.repeats), self.repeats * self.seconds)


@dataclass(slots=True)
class CaseResult:
    """One entry a repeat in each list that the case has. verified: what was read back, in words."""

    ours: list[Outcome] = field(default_factory=list)
    echo: list[Outcome] = field(default_factory=list)
    disk: list[DiskSpeed] = field(default_factory=list)
    journal_writes: int = 0
    answered: int = 0
    faults: list[str] = field(default_factory=list)
    verified: str = ""

    @property
    def refused(self) -> int:
        return sum(one.refused for one in self.ours)


def run_case(case: Case, directory: Path, pace: Pace) -> CaseResult:
    """Raises ShardServerError and OSError of servers, loads and disks that fail."""
    result = CaseResult()
    with OwnServer(directory, case.server) as server:
        session = Session(server.peer, case.server.durability, cores_beside(server.peer.cores))
        session.create(case.spec.partitions)
        spec = session.fill(case.spec, case.fill_bytes) if case.fill_bytes else case.spec
        _measure(case, spec, server, session, directory, pace, result)
        if spec.senders:
            _probe_refusals(spec, session, result)
            session.kill_and_restart(server)
        result.faults += session.faults(spec)
        if result.refused:
            result.faults.append(f"{result.refused} requests were refused")
        killed = " after kill -9" if spec.senders else ""
        result.verified = f"{session.acknowledged.total} messages read back{killed}"
    return result


def _probe_refusals(spec: LoadSpec, session: Session, result: CaseResult) -> None:
    """Beside the row's load, which is not measured but read back."""
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(probe_refusals, session.connect, spec.shape, session.durability_option)
        beside = session.run(spec, seconds=REFUSALS_LOAD_S)
        found = probing.result()
    result.faults += found
    if beside.refused:
        result.faults.append(f"{beside.refused} requests were refused beside the probes")


def _measure(
    case: Case, spec: LoadSpec, server: OwnServer, session: Session, directory: Path, pace: Pace, result: CaseResult
) -> None:
    use_once(case, spec, server, session)
    before = server.log_figure("journal", "writes")
    with _echo_of(case, spec, server.peer) as beside:
        for _ in range(pace.repeats):
            ours = session.run(spec, warmup_s=pace.warmup_s, seconds=pace.seconds)
            result.ours.append(ours)
            result.answered += sum(one.answered for one in ours.kinds.values())
            if beside is not None:
                echoed = run_spec(spec, beside, session.cores, warmup_s=pace.warmup_s, seconds=pace.seconds)
                result.echo.append(echoed)
            if case.disk is not None:
                result.disk.append(measure_disk(directory, case.disk, pace.seconds))
    result.journal_writes = server.log_figure("journal", "writes") - before


def use_once(case: Case, spec: LoadSpec, server: OwnServer, session: Session) -> None:
    """Load until what costs more the first time than later is over. Raises ShardServerError: it does not end."""
    if not case.settle_s:
        return
    deep = replace(spec, depth=case.settle_depth)
    session.run(deep, seconds=case.settle_s)
    rounds = SETTLE_LIMIT_ROUNDS
    while server.log_figure("flushes") < case.settle_flushes:
        if not (rounds := rounds - 1):
            raise ShardServerError(f"fewer than {case.settle_flushes} flushes before the first window")
        session.run(deep, seconds=case.settle_s)


@contextlib.contextmanager
def _echo_of(case: Case, spec: LoadSpec, peer: Peer) -> Iterator[Peer | None]:
    if not case.echo:
        yield None
        return
    with echo(peer.cores, spec) as made:
        yield made
