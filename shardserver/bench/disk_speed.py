"""How fast the file system below a directory is by itself: one writer or reader, one file whose extents are written.

fio measures where it is installed; else a loop of ours does, and the figures say so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardserver.errors import ShardServerError

FILE_BYTES, FILL_BYTES = 256 << 20, 1 << 20
OWN_LOOP = "own loop (fio is not installed)"


class DiskMeasureError(ShardServerError):
    """fio failed; the text is what it said."""


@dataclass(frozen=True, slots=True)
class DiskJob:
    """depth: operations in flight. syncs: an fdatasync behind every write, inside its latency."""

    block_bytes: int
    depth: int = 1
    reads: bool = False
    syncs: bool = False

    @property
    def text(self) -> str:
        size = f"{self.block_bytes >> 20} MiB" if self.block_bytes >= 1 << 20 else f"{self.block_bytes >> 10} KiB"
        what = "read" if self.reads else "write + fdatasync" if self.syncs else "write"
        return f"{size} {what}" + (f", {self.depth} in flight" if self.depth > 1 else "")


SMALL_SYNC, SMALL_WRITE = DiskJob(4096, syncs=True), DiskJob(4096)
LARGE_SYNC, LARGE_WRITE = DiskJob(1 << 20, syncs=True), DiskJob(1 << 20, depth=4)
LARGE_READ = DiskJob(1 << 20, depth=4, reads=True)


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """p50_ns: of one operation; with syncs under fio the sum of the write's p50 and the sync's.

    is_direct: False when the file system refuses O_DIRECT; then caches are in it.
    """

    tool: str
    job: str
    bytes_per_s: float
    p50_ns: int
    operations: int
    is_direct: bool


def measure_disk(directory: Path, job: DiskJob, seconds: float) -> DiskSpeed:
    """Run one job on a new file in directory for so long. Raises OSError, DiskMeasureError."""
    return measure_jobs(directory, [job], seconds)[0]


def measure_jobs(directory: Path, jobs: list[DiskJob], seconds: float) -> list[DiskSpeed]:
    """One after the other, on one file."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix="disk-speed-") as made:
        is_direct = _fill(made.name)
        fio = shutil.which("fio")
        if fio is None:
            return [_measure_own(made.name, job, seconds, is_direct) for job in jobs]
        return [_measure_fio(fio, made.name, job, seconds, is_direct) for job in jobs]


def _fill(path: str) -> bool:
    """Write every extent once; gives whether O_DIRECT works there."""
    data = _aligned(FILL_BYTES)
    with _opened(path, os.O_WRONLY) as (descriptor, is_direct):
        for position in range(0, FILE_BYTES, FILL_BYTES):
            _whole(os.pwrite(descriptor, data, position), FILL_BYTES)
        os.fsync(descriptor)
    return is_direct


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[tuple[int, bool]]:
    try:
        descriptor, is_direct = os.open(path, flags | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor, is_direct = os.open(path, flags), False
    try:
        yield descriptor, is_direct
    finally:
        os.close(descriptor)


def _aligned(size: int) -> mmap.mmap:
    made = mmap.mmap(-1, size)
    made[:] = os.urandom(size)
    return made


def _whole(done: int, wanted: int) -> None:
    if done != wanted:
        raise OSError(errno.EIO, f"{done} of {wanted} bytes done")


# fio


def fio_command(fio: str, path: str, job: DiskJob, seconds: float, is_direct: bool) -> list[str]:
    options = {
        "name": "ceiling",
        "filename": path,
        "size": str(FILE_BYTES),
        "rw": "read" if job.reads else "write",
        "overwrite": "1",
        "bs": str(job.block_bytes),
        "ioengine": "psync" if job.depth == 1 else "io_uring",
        "iodepth": str(job.depth),
        "direct": str(int(is_direct)),
        "fdatasync": str(int(job.syncs)),
        "time_based": "1",
        "runtime": f"{max(1, round(seconds * 1000))}ms",
        "output-format": "json",
    }
    return [fio, *(f"--{name}={value}" for name, value in options.items())]


def _measure_fio(fio: str, path: str, job: DiskJob, seconds: float, is_direct: bool) -> DiskSpeed:
    done = subprocess.run(fio_command(fio, path, job, seconds, is_direct), capture_output=True, text=True)
    if done.returncode:
        raise DiskMeasureError(f"fio: {done.stderr.strip()}")
    return read_fio(json.loads(done.stdout[done.stdout.index("{") :]), job, is_direct)


def read_fio(report: dict[str, Any], job: DiskJob, is_direct: bool) -> DiskSpeed:
    """From fio's JSON report of one job."""
    found = report["jobs"][0]
    side = found["read" if job.reads else "write"]
    p50 = _fio_p50(side["clat_ns"])
    if job.syncs:
        p50 += _fio_p50(found["sync"]["lat_ns"])
    return DiskSpeed(report["fio version"], job.text, float(side["bw_bytes"]), p50, side["total_ios"], is_direct)


def _fio_p50(latencies: dict[str, Any]) -> int:
    return int(latencies["percentile"]["50.000000"])


# Our own loop


@dataclass(slots=True)
class _Loop:
    """One thread of a job, going round in its share of the file."""

    path: str
    job: DiskJob
    first: int
    end_ns: int
    latencies: list[int] = field(default_factory=list)
    error: OSError | None = None

    def run(self) -> None:
        try:
            self._run()
        except OSError as error:
            self.error = error

    def _run(self) -> None:
        size, share = self.job.block_bytes, FILE_BYTES // self.job.depth
        data = _aligned(size)
        with _opened(self.path, os.O_RDONLY if self.job.reads else os.O_WRONLY) as (descriptor, _):
            now = time.monotonic_ns()
            while now < self.end_ns or not self.latencies:
                self._operate(descriptor, data, self.first + len(self.latencies) * size % share)
                after = time.monotonic_ns()
                self.latencies.append(after - now)
                now = after

    def _operate(self, descriptor: int, data: mmap.mmap, position: int) -> None:
        if self.job.reads:
            _whole(os.preadv(descriptor, [data], position), len(data))
            return
        _whole(os.pwrite(descriptor, data, position), len(data))
        if self.job.syncs:
            os.fdatasync(descriptor)


def _measure_own(path: str, job: DiskJob, seconds: float, is_direct: bool) -> DiskSpeed:
    begun = time.monotonic_ns()
    end = begun + int(seconds * 1e9)
    loops = [_Loop(path, job, number * (FILE_BYTES // job.depth), end) for number in range(job.depth)]
    threads = [threading.Thread(target=one.run) for one in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = (time.monotonic_ns() - begun) / 1e9
    for one in loops:
        if one.error is not None:
            raise one.error
    latencies = sorted(value for one in loops for value in one.latencies)
    speed = len(latencies) * job.block_bytes / elapsed_s
    return DiskSpeed(OWN_LOOP, job.text, speed, latencies[len(latencies) // 2], len(latencies), is_direct)
