"""What of a data directory's own name survives a power cut; locks and ready files: test_process.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardserver.supervisor.data_directory import DataDirectory


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths that were synced."""
    found: set[str] = set()
    sync = os.fsync

    def record(descriptor: int) -> None:
        found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return found


def test_every_name_above_a_new_data_directory_is_synced(tmp_path: Path, synced: set[str]) -> None:
    data = DataDirectory(str(tmp_path / "srv" / "data"))
    data.open(require_data=False)
    data.close()
    assert {str(tmp_path), str(tmp_path / "srv"), str(tmp_path / "srv" / "data")} <= synced


def test_a_data_directory_that_was_made_and_not_synced_is_synced_by_the_next_start(
    tmp_path: Path, synced: set[str]
) -> None:
    (tmp_path / "data" / "run").mkdir(parents=True)
    data = DataDirectory(str(tmp_path / "data"))
    data.open(require_data=False)
    data.close()
    assert {str(tmp_path), str(tmp_path / "data")} <= synced


def test_others_may_not_look_into_a_new_data_directory_and_one_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    for name in "srv/new", "there":
        data = DataDirectory(str(tmp_path / name))
        data.open(require_data=False)
        data.close()
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("srv/new", "srv/new/run", "there/run")}
    assert modes == {"srv/new": 0o700, "srv/new/run": 0o700, "there/run": 0o700}
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "srv").stat().st_mode & 0o777 != 0o700
