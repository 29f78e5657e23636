"""The load's processes: one a connection, started together, measured over one window."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from shardserver.bench.load import LoadResult, run_load
from shardserver.bench.plan import STREAM, TOPIC, USERNAME, LoadPlan, Measurement, Outcome, Schedule, Shape
from shardserver.bench.processes import cpu_seconds, sleep_until
from shardserver.client.batch import encode_batch
from shardserver.client.connection import Connection
from shardserver.client.requests import POLL_OFFSET_FROM_END
from shardserver.errors import ShardServerError

START_DELAY_NS = 50_000_000


class LoadFailedError(ShardServerError):
    """A load process could not do its work; the text says why."""


def make_batch(shape: Shape) -> bytes:
    """Random payloads, the same for every message."""
    return encode_batch([os.urandom(shape.message_bytes)] * shape.messages_per_batch)


def run_worker(plan: LoadPlan, pipe: Pipe) -> None:
    """A load process, whole: says it is ready, gets a Schedule, gives (LoadResult, None) and latencies, or an error."""
    try:
        os.sched_setaffinity(0, plan.cores)
        with Connection(plan.host, plan.port) as connection:
            if plan.password is not None:
                connection.login(USERNAME, plan.password)
            frame = _frame(plan, connection)
            pipe.send((None, None))
            schedule = pipe.recv()
            # Anonymous memory: only the pages that latencies reach are ever committed.
            latencies = memoryview(mmap.mmap(-1, 8 * schedule.capacity)).cast("Q")
            result = _run(plan, connection, frame, latencies, schedule)
        pipe.send((tuple(result), None))
        pipe.send_bytes(latencies[: result.recorded].tobytes())
    except (OSError, ShardServerError) as error:
        pipe.send((None, f"{type(error).__name__}: {error}"))


def _frame(plan: LoadPlan, connection: Connection) -> bytes:
    shape = plan.shape
    if plan.kind == "send":
        return connection.send_frame(STREAM, TOPIC, plan.partition, make_batch(shape), shape.messages_per_batch)
    return connection.poll_frame(STREAM, TOPIC, plan.partition, 0, shape.messages_per_batch)


def _run(plan: LoadPlan, connection: Connection, frame: bytes, latencies: memoryview, schedule: Schedule) -> LoadResult:
    sends, follows = plan.kind == "send", plan.kind == "poll" and plan.log_messages == 0
    socket = connection.detach_socket()
    socket.setblocking(False)
    sleep_until(schedule.start_ns)
    return run_load(
        socket.fileno(),
        frame,
        latencies,
        depth=1 if follows else plan.shape.depth,
        measure_from_ns=schedule.measure_from_ns,
        until_ns=schedule.until_ns,
        messages_per_request=plan.shape.messages_per_batch if sends else 0,
        offset_at=0 if sends else len(frame) - POLL_OFFSET_FROM_END,
        offset_step=plan.shape.messages_per_batch,
        offset_end=plan.log_messages,
        follow=follows,
    )


class LoadGroup:
    """The load processes of one run. Leaving the context ends them."""

    def __init__(self, plans: Sequence[LoadPlan]) -> None:
        self._plans = plans
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> LoadGroup:
        spawn = multiprocessing.get_context("spawn")
        for plan in self._plans:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=run_worker, args=(plan, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if error is not None:
                process.terminate()
            process.join()

    def run(self, peer_pids: Sequence[int], *, warmup_s: float, seconds: float) -> Outcome:
        """Start all at once; CPU times are read at both ends of the window. Raises LoadFailedError."""
        for pipe in self._pipes:
            _receive(pipe)
        start = time.monotonic_ns() + START_DELAY_NS
        measure_from = start + int(warmup_s * 1e9)
        schedule = Schedule(start, measure_from, measure_from + int(seconds * 1e9))
        for pipe in self._pipes:
            pipe.send(schedule)
        peer_s, load_s = self._cpu_in_window(schedule, peer_pids)
        kinds: dict[str, Measurement] = {}
        for plan, pipe in zip(self._plans, self._pipes, strict=True):
            result = LoadResult(*_receive(pipe))
            kinds.setdefault(plan.kind, Measurement(schedule.window_s)).add(result, pipe.recv_bytes())
        return Outcome(schedule.window_s, kinds, peer_s if peer_pids else None, len(peer_pids), load_s)

    def _cpu_in_window(self, schedule: Schedule, peer_pids: Sequence[int]) -> tuple[float, float]:
        load_pids = [process.pid for process in self._processes if process.pid is not None]
        sleep_until(schedule.measure_from_ns)
        try:
            before = cpu_seconds(peer_pids), cpu_seconds(load_pids)
            sleep_until(schedule.until_ns)
            return cpu_seconds(peer_pids) - before[0], cpu_seconds(load_pids) - before[1]
        except (FileNotFoundError, ProcessLookupError) as error:
            raise LoadFailedError("a process ended while it was measured") from error


def _receive(pipe: Pipe) -> Any:
    try:
        content, error = pipe.recv()
    except EOFError as ended:
        raise LoadFailedError("a load process ended without a word") from ended
    if error is not None:
        raise LoadFailedError(error)
    return content
