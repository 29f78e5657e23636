"""A load process: logs its connections in, says it is ready, runs the loop over one schedule, gives what it found."""

from __future__ import annotations

import mmap
import os
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple

from shardserver.bench.latencies import empty_counts
from shardserver.bench.load import LoadConnection, LoadCounts, run_load
from shardserver.bench.plan import DRAIN_S, TOPIC, USERNAME, ConnectionPlan, ProcessPlan
from shardserver.bench.processes import sleep_until
from shardserver.client.connection import Connection
from shardserver.client.requests import POLL_OFFSET_FROM_END
from shardserver.errors import ShardServerError
from shardserver.time_slice import lengthen_slice

# Bytes from the place of the partition (u32) to a poll's end, and to a send's batch.
POLL_PARTITION_FROM_END, SEND_PARTITION_FROM_BATCH = POLL_OFFSET_FROM_END + 5, 8
# Of progress, per process, so that no two share a cache line.
PROGRESS_BYTES = 64


@dataclass(frozen=True, slots=True)
class Schedule:
    """CLOCK_MONOTONIC, ns: begin, count from, stop beginning requests (MOST_NS: when all have been made)."""

    start_ns: int
    measure_from_ns: int
    until_ns: int


class WorkerResult(NamedTuple):
    sends: LoadCounts
    polls: LoadCounts
    send_latencies: array[int]
    poll_latencies: array[int]
    acked_messages: array[int]
    acked_hashes: array[int]


def run_worker(plan: ProcessPlan, pipe: Pipe, progress: Any, index: int) -> None:
    """The process, whole. progress: DupFd of PROGRESS_BYTES a process. Through the pipe go (content, error) pairs."""
    try:
        os.sched_setaffinity(0, {plan.core})
        lengthen_slice(0, nice=0)  # the kernel's workers here end what the server has written
        batches = plan.spec.shape.make_batches(plan.seed) if plan.spec.senders else []
        with ExitStack() as stack, mmap.mmap(progress.detach(), 0) as shared:
            connections = [_open(stack, plan, one) for one in plan.connections]
            pipe.send((None, None))
            with memoryview(shared)[PROGRESS_BYTES * index :][:PROGRESS_BYTES].cast("Q") as figures:
                result = _run(plan, connections, batches, pipe.recv(), figures)
        pipe.send((result, None))
    except (OSError, ShardServerError) as error:
        pipe.send((None, f"{type(error).__name__}: {error}"))


def _open(stack: ExitStack, plan: ProcessPlan, one: ConnectionPlan) -> LoadConnection:
    connection = stack.enter_context(Connection(plan.host, plan.port))
    if plan.password is not None:
        connection.login(USERNAME, plan.password)
    if one.sends:
        frame = connection.send_frame(plan.spec.stream, TOPIC, 0, b"", plan.spec.shape.messages_per_batch)
        partition_at, offset_at = len(frame) - SEND_PARTITION_FROM_BATCH, 0
    else:
        frame = connection.poll_frame(plan.spec.stream, TOPIC, 0, 0, plan.spec.shape.messages_per_batch)
        partition_at, offset_at = len(frame) - POLL_PARTITION_FROM_END, len(frame) - POLL_OFFSET_FROM_END
    socket = connection.detach_socket()
    socket.setblocking(False)
    return LoadConnection(
        socket=socket.fileno(),
        sends=one.sends,
        number=one.number,
        frame=frame,
        depth=one.depth,
        partition_at=partition_at,
        offset_at=offset_at,
        first_partition=one.first_partition,
        partitions=one.partitions,
        first_offset=one.first_offset,
        request_limit=one.request_limit,
    )


def _run(
    plan: ProcessPlan, connections: list[LoadConnection], batches: list[bytes], schedule: Schedule, progress: memoryview
) -> WorkerResult:
    spec = plan.spec
    send_latencies, poll_latencies = empty_counts(), empty_counts()
    acked_messages, acked_hashes = (array("Q", bytes(8 * spec.partitions)) for _ in range(2))
    sleep_until(schedule.start_ns)
    sends, polls = run_load(
        connections,
        batches,
        send_latencies=memoryview(send_latencies),
        poll_latencies=memoryview(poll_latencies),
        acked_messages=memoryview(acked_messages),
        acked_hash=memoryview(acked_hashes),
        progress=progress,
        start_ns=schedule.start_ns,
        measure_from_ns=schedule.measure_from_ns,
        until_ns=schedule.until_ns,
        drain_ns=int(DRAIN_S * 1e9),
        interval_ns=plan.interval_ns,
        messages_per_batch=spec.shape.messages_per_batch,
        log_messages=spec.log_messages,
        seed=plan.seed,
    )
    return WorkerResult(sends, polls, send_latencies, poll_latencies, acked_messages, acked_hashes)
