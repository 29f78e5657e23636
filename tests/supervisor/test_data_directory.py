"""What of a data directory's own name survives a power cut; locks and ready files: test_process.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shardserver.errors import ConfigError
from shardserver.supervisor import data_directory
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


class FailingNames:
    """The n-th sync of a directory fails and drops its new names: no later sync makes them durable, only making them
    anew. durable: of all names that were made, by path.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.fail_at, self.syncs = fail_at, 0
        self.durable: dict[str, bool] = {}
        self._dropped: set[str] = set()
        make, rename = os.mkdir, os.rename

        def made(path: str, mode: int = 0o777) -> None:
            make(path, mode)
            self._note(path)

        def renamed(source: str, target: str) -> None:
            rename(source, target)
            self._note(target)

        monkeypatch.setattr(os, "mkdir", made)
        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(data_directory, "_sync_directory", self._sync)

    def _note(self, path: str) -> None:
        self.durable[path] = False
        self._dropped.discard(path)

    def _sync(self, path: str) -> None:
        self.syncs += 1
        new = {one for one, durable in self.durable.items() if os.path.dirname(one) == path and not durable}
        if self.syncs == self.fail_at:
            self._dropped |= new
            raise OSError(errno.EIO, "injected")
        self.durable |= dict.fromkeys(new - self._dropped, True)


@pytest.mark.parametrize("fail_at", range(1, 4))
def test_names_of_a_first_start_that_failed_to_sync_them_are_made_anew_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    path = str(tmp_path / "srv" / "data")
    names = FailingNames(monkeypatch, fail_at)
    with pytest.raises(ConfigError, match="injected"):
        DataDirectory(path).open(require_data=False)
    data = DataDirectory(path)
    data.open(require_data=False)
    data.close()
    wanted = [
        os.path.dirname(path),
        path,
        *(os.path.join(path, one) for one in ("run", "shards", "partitions", "format")),
    ]
    assert {one: names.durable[one] for one in wanted} == dict.fromkeys(wanted, True)


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
