"""Limits of version 1 and 2, in trees as the kernel lays them out."""

from pathlib import Path

import pytest

from shardserver.supervisor.cgroup import Cgroup


def write(root: Path, path: str, content: str) -> None:
    (root / "mount" / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "mount" / path).write_text(content)


@pytest.fixture
def cgroup(tmp_path: Path) -> Cgroup:
    return Cgroup(tmp_path / "mount", tmp_path / "own")


def test_version_2_the_strictest_of_the_ancestors_holds(tmp_path: Path, cgroup: Cgroup) -> None:
    (tmp_path / "own").write_text("0::/a/b\n")
    write(tmp_path, "a/b/cpu.max", "max 100000\n")
    write(tmp_path, "a/cpu.max", "250000 100000\n")
    write(tmp_path, "a/b/memory.max", "3000\n")
    write(tmp_path, "a/memory.max", "max\n")
    assert (cgroup.cpu_quota(), cgroup.memory_bytes()) == (2.5, 3000)
    write(tmp_path, "a/memory.max", "2000\n")
    assert cgroup.memory_bytes() == 2000


def test_version_1_is_read_in_the_hierarchy_of_its_controller(tmp_path: Path, cgroup: Cgroup) -> None:
    (tmp_path / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/y\n0::/\n")
    write(tmp_path, "cpu/x/cpu.cfs_quota_us", "150000\n")
    write(tmp_path, "cpu/x/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "memory/y/memory.limit_in_bytes", "4096\n")
    write(tmp_path, "memory/x/memory.limit_in_bytes", "1\n")
    assert (cgroup.cpu_quota(), cgroup.memory_bytes()) == (1.5, 4096)


def test_a_container_that_sees_its_group_as_the_mount_is_limited_too(tmp_path: Path, cgroup: Cgroup) -> None:
    (tmp_path / "own").write_text("0::/../docker/abc\n")
    write(tmp_path, "cpu.max", "50000 100000\n")
    assert cgroup.cpu_quota() == 0.5


def test_without_limits_or_files_there_is_none(tmp_path: Path, cgroup: Cgroup) -> None:
    assert (cgroup.cpu_quota(), cgroup.memory_bytes()) == (None, None)
    (tmp_path / "own").write_text("0::/\nnonsense\n")
    write(tmp_path, "cpu.max", "max 100000\n")
    write(tmp_path, "memory.max", "max\n")
    assert (cgroup.cpu_quota(), cgroup.memory_bytes()) == (None, None)
