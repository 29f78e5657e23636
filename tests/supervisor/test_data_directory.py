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
