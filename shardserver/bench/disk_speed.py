"""How fast the file system below a directory is by itself, on extents in the state in which the log's are.

A journal's files are written once at creation, so its writes are measured on a file whose extents are written; segments
grow, so theirs are measured on files that grow, as many as are written at the same time.

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
GROWING_BYTES = 4 << 30  # of all files of a job together; it ends there
OWN_LOOP = "own loop (fio is not installed)"


class DiskMeasureError(ShardServerError):
    """fio failed; the text is what it said."""


@dataclass(frozen=True, slots=True)
class DiskJob:
    """depth: operations in flight on one file. syncs: an fdatasync behind every write, inside its latency.

    growing_files: new files, each written from its start by a writer of its own; 0: one file of written extents.
    """

    block_bytes: int
    depth: int = 1
    reads: bool = False
    syncs: bool = False
    growing_files: int = 0

    @property
    def text(self) -> str:
        size = f"{self.block_bytes >> 20} MiB" if self.block_bytes >= 1 << 20 else f"{self.block_bytes >> 10} KiB"
        what = "read" if self.reads else "write + fdatasync" if self.syncs else "write"
        growing = f", {self.growing_files} growing files" if self.growing_files else ""
        return f"{size} {what}" + (f", {self.depth} in flight" if self.depth > 1 else "") + growing

    @property
    def loops(self) -> int:
        """Writers or readers at the same time."""
        return self.growing_files or self.depth

    @property
    def share_bytes(self) -> int:
        """What each of them has."""
        return (GROWING_BYTES if self.growing_files else FILE_BYTES) // self.loops


SMALL_SYNC, SMALL_WRITE = DiskJob(4096, syncs=True), DiskJob(4096)
LARGE_SYNC, LARGE_WRITE = DiskJob(1 << 20, syncs=True, growing_files=8), DiskJob(1 << 20, growing_files=8)
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
    """One after the other, in a directory of their own that is removed."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="disk-speed-") as made:
        is_direct = _fill(os.path.join(made, "written"))
        fio = shutil.which("fio")
        if fio is None:
            return [_measure_own(made, job, seconds, is_direct) for job in jobs]
        return [_measure_fio(fio, made, job, seconds, is_direct) for job in jobs]


def _fill(path: str) -> bool:
    """Write every extent once; gives whether O_DIRECT works there."""
    data = _aligned(FILL_BYTES)
    with _opened(path, os.O_WRONLY | os.O_CREAT) as (descriptor, is_direct):
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


def fio_command(fio: str, directory: str, job: DiskJob, seconds: float, is_direct: bool) -> list[str]:
    options = {
        "name": "ceiling",
        "rw": "read" if job.reads else "write",
        "bs": str(job.block_bytes),
        "ioengine": "psync" if job.depth == 1 else "io_uring",
        "iodepth": str(job.depth),
        "direct": str(int(is_direct)),
        "fdatasync": str(int(job.syncs)),
        "runtime": f"{max(1, round(seconds * 1000))}ms",
        "output-format": "json",
    }
    if job.growing_files:
        options |= {"directory": directory, "size": str(job.share_bytes), "numjobs": str(job.growing_files)}
        options |= {"group_reporting": "1", "fallocate": "none", "overwrite": "0", "unlink": "1"}
    else:
        options |= {"filename": os.path.join(directory, "written"), "size": str(FILE_BYTES), "overwrite": "1"}
        options |= {"time_based": "1"}
    return [fio, *(f"--{name}={value}" for name, value in options.items())]


def _measure_fio(fio: str, directory: str, job: DiskJob, seconds: float, is_direct: bool) -> DiskSpeed:
    done = subprocess.run(fio_command(fio, directory, job, seconds, is_direct), capture_output=True, text=True)
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
    """One thread of a job, going round in its share of the file, or once through a file of its own."""

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
        size, share = self.job.block_bytes, self.job.share_bytes
        data = _aligned(size)
        with _opened(self.path, os.O_RDONLY if self.job.reads else os.O_WRONLY | os.O_CREAT) as (descriptor, _):
            now = time.monotonic_ns()
            while now < self.end_ns or not self.latencies:
                if self.job.growing_files and len(self.latencies) * size >= share:
                    return
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


def _own_loops(directory: str, job: DiskJob, end_ns: int) -> list[_Loop]:
    if job.growing_files:
        return [_Loop(os.path.join(directory, f"growing.{n}"), job, 0, end_ns) for n in range(job.growing_files)]
    written = os.path.join(directory, "written")
    return [_Loop(written, job, number * job.share_bytes, end_ns) for number in range(job.depth)]


def _measure_own(directory: str, job: DiskJob, seconds: float, is_direct: bool) -> DiskSpeed:
    begun = time.monotonic_ns()
    loops = _own_loops(directory, job, begun + int(seconds * 1e9))
    threads = [threading.Thread(target=one.run) for one in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = (time.monotonic_ns() - begun) / 1e9
    for path in {one.path for one in loops if job.growing_files}:
        os.unlink(path)
    for one in loops:
        if one.error is not None:
            raise one.error
    latencies = sorted(value for one in loops for value in one.latencies)
    speed = len(latencies) * job.block_bytes / elapsed_s
    return DiskSpeed(OWN_LOOP, job.text, speed, latencies[len(latencies) // 2], len(latencies), is_direct)
