"""What the data directory lies on, from files in the kernel's formats."""

import logging
from pathlib import Path

import pytest

from shardserver.supervisor import storage_probe
from shardserver.supervisor.cgroup import Cgroup
from shardserver.supervisor.storage_probe import (
    PROBE_SYNCS,
    WARNED,
    Mount,
    device_name,
    log_storage,
    mount_of,
    sync_times_us,
    write_cache,
)

MOUNTS = """22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:45 / {data} rw,relatime shared:2 - btrfs /dev/vdb rw
41 22 0:46 / {data}/other rw,relatime - tmpfs tmpfs rw
"""


def test_the_innermost_mount_above_the_path_counts(tmp_path: Path) -> None:
    data = tmp_path / "data dir"
    (data / "inner").mkdir(parents=True)
    info = tmp_path / "mountinfo"
    info.write_text(MOUNTS.format(data=str(data).replace(" ", "\\040")))
    assert mount_of(str(data / "inner"), str(info)) == Mount("0:45", str(data), "btrfs", "/dev/vdb")
    assert mount_of(str(tmp_path), str(info)) == Mount("254:1", "/", "ext4", "/dev/vda1")
    assert mount_of(str(data), str(tmp_path / "none")).file_system == "unknown"


def test_a_partition_has_its_disk_s_write_cache(tmp_path: Path) -> None:
    disk = tmp_path / "devices" / "vda"
    (disk / "vda1").mkdir(parents=True)
    (disk / "queue").mkdir()
    (disk / "queue" / "write_cache").write_text("write back\n")
    (disk / "vda1" / "uevent").write_text("MAJOR=254\nDEVNAME=vda1\n")
    (tmp_path / "254:1").symlink_to(disk / "vda1")
    assert write_cache("254:1", tmp_path) == "write back" and device_name("254:1", tmp_path) == "vda1"
    assert write_cache("0:45", tmp_path) == "unknown" and device_name("0:45", tmp_path) == "0:45"


def test_the_sync_probe_leaves_nothing(tmp_path: Path) -> None:
    assert len(sync_times_us(str(tmp_path))) == PROBE_SYNCS and list(tmp_path.iterdir()) == []
    assert sync_times_us(str(tmp_path / "none")) == []


@pytest.mark.parametrize("kind", [*WARNED, "ext4", "xfs"])
def test_a_file_system_with_a_drawback_is_warned_of(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_probe, "mount_of", lambda path: Mount("0:45", "/", kind, "none"))
    with caplog.at_level(logging.INFO):
        log_storage(str(tmp_path), str(tmp_path))
    events = [one.message for one in caplog.records]
    assert events == (["storage", "file_system_unsuited"] if kind in WARNED else ["storage"])


@pytest.mark.parametrize(
    ("stat", "expected"), [("nr_throttled 3\nthrottled_usec 1234\n", 1234), ("throttled_time 5678000\n", 5678), ("", 0)]
)
def test_the_cgroup_tells_how_long_it_held_back(stat: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/group\n")
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "cpu.stat").write_text(stat)
    assert Cgroup(tmp_path, tmp_path / "membership").throttled_us() == expected
