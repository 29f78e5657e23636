"""Rows of tail latency beside a background job (storage rule 29): half load with the job, against the same without.

Each row counts the job in its window: one that did not run there is not met, whatever the latency.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from shardserver.bench.case_run import Pace
from shardserver.bench.long_rows import (
    DELETED_SHARE,
    LATENCY_WINDOW_S,
    PAIRS,
    ROLL_PARTITIONS,
    SEGMENT_BYTES,
    Once,
    at_half_load,
    filled_bulk,
    half_load,
    p999,
    restart_settled,
    send_to_each,
    settle,
)
from shardserver.bench.outcome import Acknowledged
from shardserver.bench.own_server import OwnServer
from shardserver.bench.plan import STREAM, TOPIC, LoadSpec
from shardserver.bench.processes import cores_beside
from shardserver.bench.rows import FSYNC, SENDS
from shardserver.bench.session import Session
from shardserver.bench.verdict import NOT_MET, NOT_RUN, WRONG, Verdict
from shardserver.errors import ShardServerError

# Rebuilding reads it all: more than a window lasts is of no use.
MOST_INDEXED_BYTES = 4 << 30
# The quiet window fills a share of this ring that makes no flush due. Memory holds as much as the ring.
FLUSHED_FILES, FLUSHED_FILE_BYTES, QUIET_SHARE = 32, 16 << 20, 0.25
FLUSHED_RING_BYTES = FLUSHED_FILES * FLUSHED_FILE_BYTES
FLUSHED_RING = (
    ("SHARDSERVER_JOURNAL_FILES", str(FLUSHED_FILES)),
    ("SHARDSERVER_JOURNAL_FILE_BYTES", str(FLUSHED_FILE_BYTES)),
    ("SHARDSERVER_STORAGE_TAIL_BYTES", str(FLUSHED_RING_BYTES)),
)
FLUSHED_PARTITIONS = 1000
CONSUMERS = 10_000
# A snapshot follows 4 MiB of changes, each of which takes 4 KiB of the metadata log (docs/formats/metadata-log.md).
CHANGES_BEFORE = 1000
SMALL_RING = (("SHARDSERVER_JOURNAL_FILE_BYTES", str(4 << 20)),)


def verdicts(directory: Path, pace: Pace, size_bytes: int) -> Iterator[Verdict]:
    """size_bytes: as of the other long rows. A row that fails is a verdict that says so."""
    window_s = min(LATENCY_WINDOW_S, 10 * pace.seconds)
    indexed_bytes = min(MOST_INDEXED_BYTES, size_bytes // DELETED_SHARE)
    rows: tuple[tuple[str, Callable[[], Verdict]], ...] = (
        ("metadata changes, snapshots : not", lambda: beside_metadata_snapshots(directory, window_s)),
        ("offset snapshots : not", lambda: beside_offset_snapshots(directory, window_s)),
        ("index rebuild : not", lambda: beside_index_rebuild(directory, window_s, indexed_bytes)),
        ("flush : not", lambda: beside_flush(directory, window_s)),
        ("get_snapshot : not", lambda: beside_get_snapshot(directory, window_s)),
    )
    for name, row in rows:
        try:
            yield replace(row(), name=f"p99.9 at half load, {name}")
        except (ShardServerError, OSError) as error:
            yield Verdict(f"p99.9 at half load, {name}", "", NOT_RUN, note=f"it failed: {error}")


class Repeated(Once):
    """A report of a load that does something again and again, in a thread, from its first call until `end`."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(self._repeat)
        self._repeated, self._has_ended = action, threading.Event()

    def _repeat(self) -> None:
        while not self._has_ended.is_set():
            self._repeated()

    def end(self) -> None:
        """Raises as join."""
        self._has_ended.set()
        self.join()


def judged(found: Verdict, done: int) -> Verdict:
    """A job that did not run disturbed nobody."""
    if done > 0 or found.state == WRONG:
        return found
    return replace(found, state=NOT_MET, note=f"the job did not run in the window: {found.note}")


def _beside_repeated(
    server: OwnServer, session: Session, window_s: float, action: Callable[[], None], done: Callable[[], int], what: str
) -> Verdict:
    """Pairs of windows of half the length, with the action again and again in each second one.

    done: how often the job, of which an action may be a part, has run so far.
    """
    spec, quiet = half_load(session, SENDS, window_s / 2)
    pairs, times = [], 0
    while True:
        job, before = Repeated(action), done()
        busy = session.run(spec, warmup_s=1, seconds=window_s / 2, report=job)
        times += done() - before
        job.end()
        pairs.append((quiet, busy))
        if len(pairs) == PAIRS:
            return judged(p999(pairs, session, server, SENDS, f"{times} {what}"), times)
        quiet = session.run(spec, warmup_s=1, seconds=window_s / 2)


def beside_metadata_snapshots(directory: Path, window_s: float) -> Verdict:
    """One connection changes metadata as fast as it is answered, and the first snapshot is due soon."""
    with OwnServer(directory, FSYNC) as server:
        session = Session(server.peer, "fsync", cores_beside(server.peer.cores))
        session.create(SENDS.partitions)
        with session.connect() as connection:
            names = count()

            def change() -> None:
                name = f"t{next(names)}"
                connection.create_topic(STREAM, name, 1)
                connection.delete_topic(STREAM, name)

            for _ in range(CHANGES_BEFORE // 2):
                change()
            return _beside_repeated(server, session, window_s, change, lambda: _generation(server), "snapshots")


def _generation(server: OwnServer) -> int:
    """Grows by one with each snapshot (docs/formats/metadata-log.md)."""
    return max(int(path.suffix[1:]) for path in (server.data / "metadata").glob("metadata.*"))


def beside_offset_snapshots(directory: Path, window_s: float) -> Verdict:
    """Both windows turn a small ring, with its flushes; in the second one its files hold committed offsets."""
    with OwnServer(directory, replace(FSYNC, environment=SMALL_RING)) as server:
        session = Session(server.peer, "fsync", cores_beside(server.peer.cores))
        session.create(SENDS.partitions)
        seen: set[int] = set()
        path = server.data / "shards" / "0" / "offsets"
        with session.connect() as connection:
            consumers = count(1)

            def commit() -> None:
                connection.store_offset(STREAM, TOPIC, 0, next(consumers) % CONSUMERS + 1, 0)
                if path.exists():
                    seen.add(path.stat().st_mtime_ns)

            return _beside_repeated(server, session, window_s, commit, lambda: len(seen), "snapshots")


def beside_index_rebuild(directory: Path, window_s: float, size_bytes: int) -> Verdict:
    """A start finds no index file; in the window each segment of another stream is polled."""
    with OwnServer(directory, FSYNC) as server:
        bulk = filled_bulk(server, size_bytes)
        server.kill()
        for path in (server.data / "partitions").glob("*/*.index"):
            path.unlink()
        server.start()
        bulk.peer = server.peer
        session = Session(server.peer, "fsync", bulk.cores)
        session.create(SENDS.partitions)
        settle(server.peer.pids)
        spec, quiet = half_load(session, SENDS, window_s)
        polls, before = Once(lambda: _poll_all_segments(bulk, size_bytes)), _rebuilt(server)
        busy = session.run(spec, warmup_s=1, seconds=window_s, report=polls)
        rebuilt = _rebuilt(server) - before
        polls.join()
        return judged(p999([(quiet, busy)], session, server, SENDS, f"{rebuilt} indexes rebuilt"), rebuilt)


def _poll_all_segments(bulk: Session, size_bytes: int) -> None:
    """Twice a segment, in the order of the offsets."""
    places = 2 * size_bytes // (8 * SEGMENT_BYTES) + 2
    with bulk.connect() as connection:
        for place in range(places):
            for partition, messages in enumerate(bulk.acknowledged.messages):
                connection.poll(bulk.stream, TOPIC, partition, messages * place // places, 1)


def _rebuilt(server: OwnServer) -> int:
    return sum(one["rebuilt_indexes"] for shard in server.statistics() for one in shard["partitions"])


def beside_flush(directory: Path, window_s: float) -> Verdict:
    """1,000 partitions, one load, one ring: a window behind a start, which finds all flushed, then whole rounds."""
    sends = replace(SENDS, partitions=FLUSHED_PARTITIONS, switches=True)
    with OwnServer(directory, replace(FSYNC, environment=FLUSHED_RING)) as server:
        session = Session(server.peer, "fsync", cores_beside(server.peer.cores))
        session.create(FLUSHED_PARTITIONS)
        half = at_half_load(session, sends, window_s)
        ring_s = _seconds_of_ring(server, session, half)
        restart_settled(server, session)
        quiet = session.run(half, warmup_s=1, seconds=min(window_s, ring_s * QUIET_SHARE))
        flushed = server.log_figure("flushes")
        if flushed:
            return Verdict("", "µs p99.9", NOT_RUN, note=f"{flushed} flushes in the quiet window too")
        while not server.log_figure("flushes"):
            session.run(half, seconds=ring_s / 8)
        before = server.log_figure("flushes")
        busy = session.run(half, warmup_s=1, seconds=max(window_s, ring_s))
        done = server.log_figure("flushes") - before
        found = p999([(quiet, busy)], session, server, sends, f"{done} partitions flushed")
        if done < FLUSHED_PARTITIONS and found.state != WRONG:
            return replace(found, state=NOT_RUN, note=f"no whole round: {found.note}")
        return found


def _seconds_of_ring(server: OwnServer, session: Session, load: LoadSpec) -> float:
    """How long this load takes to fill the journal."""
    before, seconds = server.log_figure("journal", "written_bytes"), 1.0
    session.run(load, seconds=seconds)
    return FLUSHED_RING_BYTES * seconds / max(1, server.log_figure("journal", "written_bytes") - before)


def beside_get_snapshot(directory: Path, window_s: float) -> Verdict:
    """One archive after another, of a directory with 1,000 partitions."""
    with OwnServer(directory, FSYNC) as server:
        cores = cores_beside(server.peer.cores)
        bulk = Session(server.peer, "fsync", cores, stream=f"{STREAM}-bulk")
        bulk.create(ROLL_PARTITIONS)
        send_to_each(bulk, Acknowledged.none(ROLL_PARTITIONS))
        settle(server.peer.pids)
        session = Session(server.peer, "fsync", cores)
        session.create(SENDS.partitions)
        with session.connect() as connection:
            taken: list[int] = []

            def take() -> None:
                check_archive(connection.snapshot())
                taken.append(1)

            return _beside_repeated(server, session, window_s, take, lambda: len(taken), "archives")


def check_archive(raw: bytes) -> None:
    if not raw.startswith(b"PK"):
        raise ShardServerError("get_snapshot gave no archive")
