"""Rows of many gigabytes: what they conclude from what they saw."""

from __future__ import annotations

import itertools
import mmap
import os
from pathlib import Path

import pytest
import xxhash

from shardserver.bench import long_rows
from shardserver.bench.case_run import Pace
from shardserver.bench.long_rows import MemoryWatch, Once
from shardserver.bench.processes import private_memory_bytes
from shardserver.bench.progress import Progress
from shardserver.bench.verdict import NOT_RUN
from shardserver.client.batch import encode_batch
from shardserver.errors import ShardServerError, StorageError
from shardserver.protocol.batch import stamp_batch

MOMENT = Progress.begin(0)


def test_memory_that_settles_is_no_growth_and_a_leak_is() -> None:
    settled = MemoryWatch(0, [10, 20, 50, 60, 58, 59, 60, 57, 60, 60])
    assert settled.growth_bytes() == 0
    leaking = MemoryWatch(0, list(range(10, 110, 10)))
    assert leaking.growth_bytes() == 60
    assert MemoryWatch(0, [1, 2, 3, 4]).growth_bytes() is None


def test_private_memory_is_that_of_the_process_without_shared_memory() -> None:
    before = private_memory_bytes(os.getpid())
    held = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # malloc may have had its pages before
    held.write(os.urandom(len(held)))
    assert private_memory_bytes(os.getpid()) >= before + len(held) * 0.9
    shared = os.memfd_create("shared")
    try:
        middle = private_memory_bytes(os.getpid())
        os.write(shared, held)
        assert private_memory_bytes(os.getpid()) < middle + len(held) * 0.5
    finally:
        os.close(shared)


def test_a_window_begins_once_the_server_has_nothing_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    used, slept = iter([10.0, 10.9, 11.0, 11.01]), list[float]()
    monkeypatch.setattr(long_rows, "cpu_seconds", lambda pids: next(used))
    long_rows.settle([7], slept.append)
    assert slept == [1, 1, 1]


def test_a_server_that_never_rests_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = itertools.count()
    monkeypatch.setattr(long_rows, "cpu_seconds", lambda pids: next(busy))
    with pytest.raises(ShardServerError, match="still busy"):
        long_rows.settle([7], lambda seconds: None)


def test_an_action_beside_a_load_runs_once_and_its_error_is_raised() -> None:
    calls: list[int] = []
    once = Once(lambda: calls.append(1))
    once(MOMENT)
    once(MOMENT)
    once.join()
    assert calls == [1]

    def fail() -> None:
        raise StorageError("gone")

    failing = Once(fail)
    failing(MOMENT)
    with pytest.raises(StorageError, match="gone"):
        failing.join()


def test_an_action_that_never_began_is_an_error() -> None:
    with pytest.raises(ShardServerError, match="first second"):
        Once(lambda: None).join()


def test_a_row_that_fails_says_so_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise StorageError("no room")

    for row in ("memory_at_start", "memory_growth", "while_deleting", "while_rolling"):
        monkeypatch.setattr(long_rows, row, fail)
    found = list(long_rows.verdicts(Path(), Pace(1, 0.2), 10**9))
    assert [one.state for one in found] == [NOT_RUN] * 4
    assert all(one.name and one.note == "it failed: no room" for one in found)


def test_what_makes_partitions_roll_is_part_of_the_read_back() -> None:
    batch = bytearray(encode_batch([bytes([index]) * 1000 for index in range(16)]))
    stamp_batch(batch, 0, 5, 1)
    due = [xxhash.xxh3_64_intdigest(bytes(one[:8]), 5 + index) for index, one in enumerate(messages_of(batch))]
    assert long_rows.batch_hash(bytes(batch), 5) == sum(due) % 2**64


def messages_of(batch: bytearray) -> list[bytearray]:
    return [batch[at : at + 1048] for at in range(256, len(batch), 1048)]
