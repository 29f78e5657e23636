"""Rows that take more than one load: memory over many gigabytes, and tail latency while the server tidies up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from xxhash import xxh3_64_intdigest

from shardserver.bench.case_run import Pace
from shardserver.bench.outcome import Acknowledged, Outcome
from shardserver.bench.own_server import OwnServer
from shardserver.bench.plan import BATCH_HEADER_BYTES, MESSAGE_HEADER_BYTES, STREAM, TOPIC, LoadSpec, Shape
from shardserver.bench.processes import cores_beside, cpu_seconds, private_memory_bytes
from shardserver.bench.progress import Progress, no_progress
from shardserver.bench.rows import FSYNC, LARGE, SENDS
from shardserver.bench.session import Session
from shardserver.bench.verdict import MET, NOT_MET, NOT_RUN, WRONG, Verdict, median_cpu
from shardserver.client.batch import encode_batch
from shardserver.errors import ShardServerError

MIB = 1 << 20
START_LIMIT_MIB, GROWTH_LIMIT_MIB = 60, 16
P999_LIMIT = 2.0
KEPT_BYTES, SEGMENT_BYTES = 2 << 30, 64 << 20
# A fifth of what the long rows write in all, as 20 GB are of 100.
DELETED_SHARE = 5
LATENCY_WINDOW_S = 20.0
# Of a tail without and with a job: one stop of the device, which comes with or without it, decides nothing.
PAIRS = 3
# Two batches, padded, are less than a segment of 1 MiB and three are more: it has all three, and is full. A batch of
# ROLL_DIRECT_BYTES or more is to go into a segment at once: one to each partition makes all of them roll.
ROLL_SEGMENT_BYTES, ROLL_SHAPE, ROLL_BATCHES, ROLL_PARTITIONS = MIB, Shape.fixed(380, 1000), 3, 1000
ROLL_DIRECT_BYTES, ROLL_MESSAGES, ROLL_MESSAGE_BYTES = 16 << 10, 16, 1000
ROLLING = replace(FSYNC, environment=(("SHARDSERVER_JOURNAL_DIRECT_BYTES", str(ROLL_DIRECT_BYTES)),))
# A server that used less of its core than this in a second has nothing left to do.
IDLE_SHARE, SETTLE_LIMIT_S = 0.05, 60


def verdicts(directory: Path, pace: Pace, size_bytes: int) -> Iterator[Verdict]:
    """size_bytes: written by the memory row. A row that fails is a verdict that says so."""
    window_s = min(LATENCY_WINDOW_S, 10 * pace.seconds)
    rows: tuple[tuple[str, Callable[[], Verdict]], ...] = (
        ("memory of a shard at start", lambda: memory_at_start(directory)),
        (f"growth over {size_bytes / 1e9:g} GB", lambda: memory_growth(directory, size_bytes)),
        (
            "p99.9 at half load, deleting : not",
            lambda: while_deleting(directory, window_s, size_bytes // DELETED_SHARE),
        ),
        ("p99.9 at half load, 1000 rolls : not", lambda: while_rolling(directory, window_s)),
    )
    for name, row in rows:
        try:
            yield replace(row(), name=name)
        except (ShardServerError, OSError) as error:
            yield Verdict(name, "", NOT_RUN, note=f"it failed: {error}")


def memory_at_start(directory: Path) -> Verdict:
    """Private memory: without the arenas, which are shared."""
    with OwnServer(directory, FSYNC) as server:
        used = max(map(private_memory_bytes, server.peer.pids)) / MIB
    return Verdict("", "MiB", MET if used < START_LIMIT_MIB else NOT_MET, used, limit=f"< {START_LIMIT_MIB}")


@dataclass
class MemoryWatch:
    """A report of a load that notes a process's private memory each second."""

    pid: int
    samples: list[int] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        self.samples.append(private_memory_bytes(self.pid))

    def growth_bytes(self) -> int | None:
        """The last fifth's largest over that of the second fifth: what is allocated once is there by then."""
        fifth = len(self.samples) // 5
        if not fifth:
            return None
        return max(self.samples[-fifth:]) - max(self.samples[fifth : 2 * fifth])


def memory_growth(directory: Path, size_bytes: int) -> Verdict:
    """Produced with retention on, consumed from the tail at the same time."""
    spec = LoadSpec(LARGE, senders=8, pollers=8, partitions=8, requests=max(1, size_bytes // LARGE.batch_bytes))
    with OwnServer(directory, FSYNC) as server:
        session = Session(server.peer, "fsync", cores_beside(server.peer.cores))
        session.create(8, max_topic_size=KEPT_BYTES, segment_size=SEGMENT_BYTES)
        watch = MemoryWatch(server.peer.pids[0])
        outcome = session.run(spec, report=watch)
    growth = watch.growth_bytes()
    consumed = f"{outcome.kinds['poll'].messages} of {outcome.kinds['send'].messages} messages consumed"
    if growth is None or outcome.refused:
        return Verdict("", "MiB", NOT_RUN, note=f"{consumed}, {outcome.refused} refused, {len(watch.samples)} samples")
    state = MET if growth <= GROWTH_LIMIT_MIB * MIB else NOT_MET
    return Verdict("", "MiB", state, growth / MIB, limit=f"<= {GROWTH_LIMIT_MIB}", note=consumed)


def filled_bulk(server: OwnServer, size_bytes: int) -> Session:
    """Another stream, of so many bytes in 8 partitions, on disk."""
    bulk = Session(server.peer, "fsync", cores_beside(server.peer.cores), stream=f"{STREAM}-bulk")
    bulk.create(8, segment_size=SEGMENT_BYTES)
    bulk.fill(LoadSpec(LARGE, pollers=1, partitions=8), size_bytes)
    settle(server.peer.pids)
    return bulk


def while_deleting(directory: Path, window_s: float, size_bytes: int) -> Verdict:
    """size_bytes of another stream are deleted from the first second of each second window on."""
    with OwnServer(directory, FSYNC) as server:
        bulk = filled_bulk(server, size_bytes)
        session = Session(server.peer, "fsync", bulk.cores)
        session.create(SENDS.partitions)
        spec, quiet = half_load(session, SENDS, window_s)
        pairs = []
        while True:
            deletion = Once(bulk.delete)
            busy = session.run(spec, warmup_s=1, seconds=window_s, report=deletion)
            deletion.join()
            pairs.append((quiet, busy))
            if len(pairs) == PAIRS:
                return p999(pairs, session, server, SENDS, f"{size_bytes / 1e9:.1f} GB")
            bulk = filled_bulk(server, size_bytes)
            quiet = session.run(spec, warmup_s=1, seconds=window_s)


def while_rolling(directory: Path, window_s: float) -> Verdict:
    """Every partition's segment is full when a second window begins; in it one batch more goes to each.

    Both windows begin with a start, whose first touch of memory is in them. The last one's messages are read back.
    """
    sends = replace(SENDS, partitions=ROLL_PARTITIONS, switches=True)
    with OwnServer(directory, ROLLING) as server:
        session = Session(server.peer, "fsync", cores_beside(server.peer.cores))
        session.create(ROLL_PARTITIONS)
        spec = at_half_load(session, sends, window_s)
        pairs = []
        while True:
            restart_settled(server, session)
            quiet = session.run(spec, warmup_s=1, seconds=window_s)
            session.delete()
            session, busy, rolled = _while_all_roll(server, session.cores, spec, window_s)
            if rolled < ROLL_PARTITIONS:
                return Verdict("", "µs p99.9", NOT_RUN, note=f"{rolled} segments rolled, not all of them in the window")
            pairs.append((quiet, busy))
            if len(pairs) == PAIRS:
                return p999(pairs, session, server, sends, f"{rolled} rolled")
            session.delete()
            session = Session(server.peer, "fsync", session.cores)
            session.create(ROLL_PARTITIONS)


def _while_all_roll(
    server: OwnServer, cores: Sequence[int], spec: LoadSpec, window_s: float
) -> tuple[Session, Outcome, int]:
    """(whose partitions roll, their window, how many rolled in it)."""
    session = Session(server.peer, "fsync", cores)
    session.create(ROLL_PARTITIONS, segment_size=ROLL_SEGMENT_BYTES)
    filling = LoadSpec(ROLL_SHAPE, pollers=1, partitions=ROLL_PARTITIONS)
    session.fill(filling, ROLL_PARTITIONS * ROLL_BATCHES * ROLL_SHAPE.batch_bytes)
    restart_settled(server, session)
    before = _segments(server)
    sent = Acknowledged.none(ROLL_PARTITIONS)
    rolling = Once(lambda: send_to_each(session, sent))
    busy = session.run(spec, warmup_s=1, seconds=window_s, report=rolling)
    rolled = _segments(server) - before if rolling.is_over else 0
    rolling.join()
    session.acknowledged.merge(sent)
    return session, busy, rolled


def restart_settled(server: OwnServer, session: Session) -> None:
    """Nothing is in the journal only, and nothing is left to do."""
    session.peer = server.restart()
    settle(server.peer.pids)


def send_to_each(session: Session, sent: Acknowledged) -> None:
    """A batch that is written at once to every partition, in turn; what was acknowledged goes into `sent`."""
    batch = encode_batch([os.urandom(ROLL_MESSAGE_BYTES) for _ in range(ROLL_MESSAGES)])
    assert len(batch) >= ROLL_DIRECT_BYTES
    with session.connect() as connection:
        for partition in range(len(sent.messages)):
            base = connection.send(session.stream, TOPIC, partition, batch, ROLL_MESSAGES)
            sent.messages[partition], sent.hashes[partition] = ROLL_MESSAGES, batch_hash(batch, base)


def batch_hash(batch: bytes, base_offset: int) -> int:
    """As batches.pxd defines it, of ROLL_MESSAGES messages of ROLL_MESSAGE_BYTES."""
    size = MESSAGE_HEADER_BYTES + ROLL_MESSAGE_BYTES
    starts = (BATCH_HEADER_BYTES + index * size for index in range(ROLL_MESSAGES))
    found = (xxh3_64_intdigest(batch[at : at + 8], base_offset + index) for index, at in enumerate(starts))
    return sum(found) % 2**64


def settle(pids: Sequence[int], sleep: Callable[[float], None] = time.sleep) -> None:
    """Until these processes have been idle for a second: what a window finds is then not of what was before it.

    Raises ShardServerError after SETTLE_LIMIT_S.
    """
    before = cpu_seconds(pids)
    for _ in range(SETTLE_LIMIT_S):
        sleep(1)
        now = cpu_seconds(pids)
        if now - before < IDLE_SHARE * len(pids):
            return
        before = now
    raise ShardServerError(f"the server was still busy {SETTLE_LIMIT_S} s after the load")


class Once:
    """A report of a load that does something once, in a thread, at the first of its calls."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __call__(self, progress: Progress) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._action()
        except Exception as error:  # the boundary of the thread; raised again by join
            self._error = error

    @property
    def is_over(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def join(self) -> None:
        """Raises what the action raised, or ShardServerError when there was no call."""
        if self._thread is None:
            raise ShardServerError("the load was over before its first second")
        self._thread.join()
        if self._error is not None:
            raise self._error


def half_load(session: Session, spec: LoadSpec, window_s: float) -> tuple[LoadSpec, Outcome]:
    """The open loop at half of what a closed one reaches, and its outcome undisturbed."""
    half = at_half_load(session, spec, window_s)
    return half, session.run(half, warmup_s=1, seconds=window_s)


def at_half_load(session: Session, spec: LoadSpec, window_s: float) -> LoadSpec:
    """An open loop at half of what a closed one reaches in a quarter of a window."""
    reached = session.run(spec, warmup_s=1, seconds=window_s / 4, report=no_progress)
    return replace(spec, rate=max(1.0, reached.requests_per_s / 2), depth=16)


def _segments(server: OwnServer) -> int:
    return sum(one["segments"] for shard in server.statistics() for one in shard["partitions"])


def p999(
    pairs: Sequence[tuple[Outcome, Outcome]], session: Session, server: OwnServer, spec: LoadSpec, note: str
) -> Verdict:
    """pairs: a quiet window and a busy one each."""
    session.kill_and_restart(server)
    faults = session.faults(spec)
    if faults:
        return Verdict("", "µs p99.9", WRONG, note="; ".join(faults))
    quiet, busy = ([us for one in side if (us := _p999_us(one))] for side in zip(*pairs, strict=True))
    if len(quiet) + len(busy) < 2 * len(pairs):
        return Verdict("", "µs p99.9", NOT_RUN, note="too few requests for a p99.9")
    ratios = [late / early for early, late in zip(quiet, busy, strict=True)]
    ratio = median(ratios)
    unsent = sum(one.kinds["send"].unsent for _, one in pairs)
    return Verdict(
        "", "µs p99.9", MET if ratio <= P999_LIMIT else NOT_MET, median(busy), median(quiet),
        ratio, min(ratios), max(ratios), f"<= {P999_LIMIT:g}",
        median_cpu([one for _, one in pairs]), median_cpu([one for one, _ in pairs]),
        note + (f", {unsent} due and never begun" if unsent else ""),
    )  # fmt: skip


def _p999_us(outcome: Outcome) -> float | None:
    found = outcome.kinds["send"].latencies.percentile_ns(99.9)
    return None if found is None else found / 1e3
