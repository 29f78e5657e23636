"""From a partition's tail to a run, in plain Python: the specification of gather.pyx. No server runs it."""

from __future__ import annotations

from shardserver.memory.aligned import align_up
from shardserver.memory.arena import padded
from shardserver.storage.index import INDEX_INTERVAL_BYTES
from shardserver.storage.journal_format import BLOCK_BYTES
from shardserver.storage.run import Run, StagingPool
from shardserver.storage.tail_python import Tail, TailEntry


def chosen(tail: Tail, start: int, limit: int, most_bytes: int) -> list[TailEntry]:
    """Whole batches from offset start on that end at or before limit, most_bytes of them, but at least one."""
    taken: list[TailEntry] = []
    total = 0
    for entry in tail.from_offset(start):
        if entry.end_offset > limit or (taken and total + len(entry.data) > most_bytes):
            break
        taken.append(entry)
        total += len(entry.data)
    return taken


def gather(entries: list[TailEntry], pool: StagingPool, run: Run, places: list[int]) -> None:
    """Copy them back to back, and zeros behind them up to a whole block."""
    total = sum(len(entry.data) for entry in entries)
    end = align_up(total, BLOCK_BYTES)
    staging, position = pool.take(end), 0
    for entry in entries:
        staging[position : position + len(entry.data)] = entry.data
        places.append(run.size_bytes + position)
        position += len(entry.data)
    staging[position:end] = bytes(end - position)
    run.staging.append(staging)
    run.buffers.append(staging[:end])
    run.size_bytes += end


def build_run(
    tail: Tail, start: int, limit: int, most_bytes: int, pool: StagingPool, whole_bytes: int, mark_from: int
) -> Run:
    run, gathered, places = Run(), list[TailEntry](), list[int]()
    entries = chosen(tail, start, limit, most_bytes)
    for entry in entries:
        whole = padded(entry.data) if len(entry.data) >= whole_bytes else None
        if whole is None:
            gathered.append(entry)
            continue
        if gathered:
            gather(gathered, pool, run, places)
            gathered = []
        places.append(run.size_bytes)
        run.buffers.append(whole)
        run.size_bytes += len(whole)
    if gathered:
        gather(gathered, pool, run, places)
    for entry, place in zip(entries, places, strict=True):
        if place >= mark_from:
            run.marks.append((entry.base_offset, place, entry.timestamp))
            mark_from = place + INDEX_INTERVAL_BYTES
    run.end_offset = entries[-1].end_offset if entries else start
    return run
