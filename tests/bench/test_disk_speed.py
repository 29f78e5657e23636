"""The ceiling of the disk: fio where there is one, our own loop otherwise, and the figure says which."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardserver.bench import disk_speed
from shardserver.bench.disk_speed import (
    LARGE_READ,
    LARGE_SYNC,
    LARGE_WRITE,
    OWN_LOOP,
    SMALL_SYNC,
    DiskJob,
    fio_command,
    read_fio,
)


@pytest.fixture(autouse=True)
def small_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "FILE_BYTES", 8 << 20)
    monkeypatch.setattr(disk_speed, "GROWING_BYTES", 16 << 20)


@pytest.mark.parametrize("job", [SMALL_SYNC, LARGE_SYNC, LARGE_WRITE, LARGE_READ])
def test_without_fio_the_own_loop_measures_and_says_so(
    job: DiskJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = disk_speed.measure_disk(tmp_path, job, 0.05)
    assert (found.tool, found.job) == (OWN_LOOP, job.text)
    assert found.operations >= job.loops and found.bytes_per_s > 0 and found.p50_ns > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.parametrize("job", [SMALL_SYNC, LARGE_SYNC, LARGE_WRITE, LARGE_READ])
def test_fio_measures_the_same_job(job: DiskJob, tmp_path: Path) -> None:
    found = disk_speed.measure_disk(tmp_path, job, 0.2)
    assert found.tool.startswith("fio") and found.job == job.text
    assert found.operations > 0 and found.bytes_per_s > 0 and found.p50_ns > 0
    assert not list(tmp_path.iterdir())


def test_fio_is_told_what_counts_as_a_ceiling() -> None:
    command = fio_command("fio", "here", SMALL_SYNC, 1.5, True)
    assert {"--direct=1", "--fdatasync=1", "--iodepth=1", "--overwrite=1", "--runtime=1500ms"} <= set(command)
    assert "--filename=here/written" in command
    command = fio_command("fio", "here", LARGE_WRITE, 1, True)
    assert {"--bs=1048576", "--fdatasync=0", "--numjobs=8", "--rw=write", "--directory=here"} <= set(command)
    assert {"--overwrite=0", "--fallocate=none", "--size=2097152"} <= set(command) and "--time_based=1" not in command
    command = fio_command("fio", "here", LARGE_READ, 1, True)
    assert {"--rw=read", "--iodepth=4", "--filename=here/written"} <= set(command)


def test_a_synced_writes_latency_is_that_of_write_and_sync() -> None:
    percentiles = {"percentile": {"50.000000": 1000}}
    write = {"clat_ns": percentiles, "bw_bytes": 4096, "total_ios": 3}
    report = {
        "fio version": "fio-3",
        "jobs": [{"write": write, "sync": {"lat_ns": {"percentile": {"50.000000": 234}}}}],
    }
    assert read_fio(report, SMALL_SYNC, True).p50_ns == 1234
    assert read_fio(report, DiskJob(4096), True).p50_ns == 1000
