"""How fast the file system below a directory is by itself: one writer, one file, nothing else."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SMALL_BYTES, LARGE_BYTES, FILE_BYTES = 4096, 1 << 20, 64 << 20


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Latencies are medians, ns. is_direct: False when the file system refuses O_DIRECT; then caches are in it."""

    small_sync_ns: int
    small_write_ns: int
    large_bytes_per_s: float
    syncs: int
    writes: int
    is_direct: bool


def measure_disk(directory: Path, seconds: float) -> DiskSpeed:
    """Overwrite a file whose extents have all been written before, for `seconds` each of three ways.

    small_sync: 4 KiB pwrite and fdatasync. small_write: 4 KiB pwrite alone. large: 1 MiB pwrite, one fdatasync at the
    end, inside the time. Raises OSError.
    """
    with tempfile.NamedTemporaryFile(dir=directory, prefix="disk-speed-") as made:
        descriptor, is_direct = _open(made.name)
        try:
            large, small = mmap.mmap(-1, LARGE_BYTES), mmap.mmap(-1, SMALL_BYTES)
            large[:] = os.urandom(LARGE_BYTES)
            small[:] = os.urandom(SMALL_BYTES)
            _write_all(descriptor, large)
            syncs = _small(descriptor, small, seconds, sync=True)
            writes = _small(descriptor, small, seconds, sync=False)
            speed = _large(descriptor, large, seconds)
        finally:
            os.close(descriptor)
    return DiskSpeed(_median(syncs), _median(writes), speed, len(syncs), len(writes), is_direct)


def _open(path: str) -> tuple[int, bool]:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_WRONLY | os.O_DIRECT), True
    return os.open(path, os.O_WRONLY), False


def _write_all(descriptor: int, large: mmap.mmap) -> None:
    for position in range(0, FILE_BYTES, LARGE_BYTES):
        _write(descriptor, large, position)
    os.fsync(descriptor)


def _write(descriptor: int, data: mmap.mmap, position: int) -> None:
    if os.pwrite(descriptor, data, position) != len(data):
        raise OSError(errno.EIO, "a short write")


def _small(descriptor: int, data: mmap.mmap, seconds: float, *, sync: bool) -> list[int]:
    latencies: list[int] = []
    now = time.monotonic_ns()
    end = now + int(seconds * 1e9)
    while now < end or not latencies:
        _write(descriptor, data, len(latencies) * SMALL_BYTES % FILE_BYTES)
        if sync:
            os.fdatasync(descriptor)
        after = time.monotonic_ns()
        latencies.append(after - now)
        now = after
    return latencies


def _large(descriptor: int, data: mmap.mmap, seconds: float) -> float:
    begun, written = time.monotonic(), 0
    while time.monotonic() < begun + seconds or not written:
        _write(descriptor, data, written % FILE_BYTES)
        written += LARGE_BYTES
    os.fdatasync(descriptor)
    return written / (time.monotonic() - begun)


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]
