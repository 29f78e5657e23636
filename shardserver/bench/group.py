"""The load's processes: started together, measured over one window, watched while they run."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from types import TracebackType
from typing import Any

from shardserver.bench.load import MOST_NS
from shardserver.bench.outcome import Acknowledged, Measurement, Outcome
from shardserver.bench.peers import Peer
from shardserver.bench.plan import LoadSpec, ProcessPlan, plan_processes
from shardserver.bench.processes import cpu_seconds
from shardserver.bench.progress import Progress, no_progress
from shardserver.bench.worker import PROGRESS_BYTES, Schedule, WorkerResult, run_worker
from shardserver.errors import ShardServerError

START_DELAY_NS, TICK_NS = 50_000_000, 1_000_000_000
Report = Callable[[Progress], None]


class LoadFailedError(ShardServerError):
    """A load process could not do its work; the text says why."""


def run_spec(
    spec: LoadSpec,
    peer: Peer,
    cores: Sequence[int],
    *,
    processes: int = 0,
    warmup_s: float = 0.0,
    seconds: float = 0.0,
    first_number: int = 1,
    report: Report = no_progress,
) -> Outcome:
    """Run one load against a peer from processes on these cores (0: one a core). seconds do not count with a total."""
    plans = plan_processes(spec, peer.host, peer.port, peer.password, cores, processes or len(cores), first_number)
    with LoadGroup(plans) as group:
        return group.run(peer, warmup_s=warmup_s, seconds=seconds, report=report)


class LoadGroup:
    """The load processes of one run. Leaving the context ends them."""

    def __init__(self, plans: Sequence[ProcessPlan]) -> None:
        self._plans = plans
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []
        self._progress = os.memfd_create("shardserver-bench-progress", os.MFD_CLOEXEC)
        os.ftruncate(self._progress, PROGRESS_BYTES * len(plans))
        self._figures = mmap.mmap(self._progress, 0)

    def __enter__(self) -> LoadGroup:
        spawn = multiprocessing.get_context("spawn")
        for index, plan in enumerate(self._plans):
            ours, theirs = spawn.Pipe()
            arguments = (plan, theirs, _Handed(self._progress), index)
            process = spawn.Process(target=run_worker, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if error is not None:
                process.terminate()
            process.join()
            pipe.close()
        self._figures.close()
        os.close(self._progress)

    def run(self, peer: Peer, *, warmup_s: float, seconds: float, report: Report = no_progress) -> Outcome:
        """Start all at once; CPU times are read at both ends of the window. Raises LoadFailedError."""
        for pipe in self._pipes:
            _receive(pipe)
        schedule = self._schedule(warmup_s, seconds)
        for pipe in self._pipes:
            pipe.send(schedule)
        before, after = self._watch(schedule, peer, report)
        results = [WorkerResult(*_receive(pipe)) for pipe in self._pipes]
        return self._outcome(results, schedule, peer, [end - begin for begin, end in zip(before, after, strict=True)])

    def _schedule(self, warmup_s: float, seconds: float) -> Schedule:
        start = time.monotonic_ns() + START_DELAY_NS
        if self._plans[0].spec.requests is not None:
            return Schedule(start, start, MOST_NS)
        measure_from = start + int(warmup_s * 1e9)
        return Schedule(start, measure_from, measure_from + int(seconds * 1e9))

    def _watch(self, schedule: Schedule, peer: Peer, report: Report) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """CPU seconds of peer and load, at the window's begin and end; reports once a second meanwhile."""
        progress = Progress.begin(schedule.start_ns)
        while (now := time.monotonic_ns()) < schedule.measure_from_ns:
            self._wait(min(schedule.measure_from_ns, now + TICK_NS) - now)
        before, tick = self._cpu(peer), now + TICK_NS
        while (now := time.monotonic_ns()) < schedule.until_ns and not all(pipe.poll() for pipe in self._pipes):
            if now >= tick:
                progress = progress.advance(now, self._sums())
                report(progress)
                tick += TICK_NS
            self._wait(min(schedule.until_ns, max(tick, now)) - now)
        return before, self._cpu(peer)

    def _wait(self, timeout_ns: int) -> None:
        """Until then, or until a process has something to say that was not there before."""
        silent = [pipe for pipe in self._pipes if not pipe.poll()]
        if silent:
            wait(silent, timeout_ns / 1e9)
        else:
            time.sleep(timeout_ns / 1e9)

    def _sums(self) -> list[int]:
        """Answers, messages and bytes so far, of all processes."""
        with memoryview(self._figures) as raw, raw.cast("Q") as view:
            step = PROGRESS_BYTES // 8
            return [sum(view[field::step]) for field in range(3)]

    def _cpu(self, peer: Peer) -> tuple[float, float]:
        load_pids = [process.pid for process in self._processes if process.pid is not None]
        try:
            return cpu_seconds(peer.pids), cpu_seconds(load_pids)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise LoadFailedError("a process ended while it was measured") from error

    def _outcome(self, results: list[WorkerResult], schedule: Schedule, peer: Peer, cpu: Sequence[float]) -> Outcome:
        spec = self._plans[0].spec
        kinds = {kind: Measurement() for kind in spec.kinds}
        acknowledged = Acknowledged.none(spec.partitions)
        for result in results:
            if "send" in kinds:
                kinds["send"].add(result.sends, result.send_latencies)
            if "poll" in kinds:
                kinds["poll"].add(result.polls, result.poll_latencies)
            acknowledged.add(result.acked_messages, result.acked_hashes)
        end = schedule.until_ns
        if end == MOST_NS:
            end = max(one.last_answer_ns for one in kinds.values())
        window_s = (end - schedule.measure_from_ns) / 1e9
        return Outcome(window_s, kinds, acknowledged, cpu[0] if peer.pids else None, len(set(peer.cores)), cpu[1])


class _Handed:
    """A descriptor that a spawned process gets its own copy of; made into a DupFd at the moment of spawning."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (DupFd(self._descriptor),)


def _same(value: Any) -> Any:
    return value


def _receive(pipe: Pipe) -> Any:
    try:
        content, error = pipe.recv()
    except EOFError as ended:
        raise LoadFailedError("a load process ended without a word") from ended
    if error is not None:
        raise LoadFailedError(error)
    return content
