"""The archive of get_snapshot: its parts, its methods, and that it tells no secret."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from shardserver.config import Config
from shardserver.config_text import describe
from shardserver.core import snapshot
from shardserver.core.snapshot import Material, build_archive
from shardserver.protocol.system import COMPRESSIONS, SnapshotRequest

NAMES = {
    1: "filesystem_overview.txt",
    2: "process_list.txt",
    3: "resource_usage.txt",
    4: "test.txt",
    5: "server_logs.txt",
    6: "server_config.txt",
}


def material(directory: Path) -> Material:
    logs: dict[int, list[str] | None] = {1: None, 0: ["one line", "another"]}
    return Material(str(directory), describe(Config()), logs, None)


def parts(raw: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("types", [(100,), ()])
def test_any_method_packs_all_parts(tmp_path: Path, compression: int, types: tuple[int, ...]) -> None:
    found = parts(build_archive(material(tmp_path), SnapshotRequest(compression, types)))
    assert list(found) == list(NAMES.values()) and all(found.values())


def test_only_the_parts_that_are_asked_for_are_there(tmp_path: Path) -> None:
    for kind, name in NAMES.items():
        assert list(parts(build_archive(material(tmp_path), SnapshotRequest(2, (kind,))))) == [name]
    assert list(parts(build_archive(material(tmp_path), SnapshotRequest(1, (6, 4, 4))))) == [NAMES[4], NAMES[6]]


def test_each_part_says_what_it_is_named_for(tmp_path: Path) -> None:
    (tmp_path / "shard-0").mkdir()
    (tmp_path / "shard-0" / "journal").write_bytes(bytes(5000))
    found = parts(build_archive(material(tmp_path), SnapshotRequest(2, (100,))))
    assert any(line.split()[::2] == ["5000", "shard-0/journal"] for line in found[NAMES[1]].splitlines())
    assert str(os.getpid()) in [line.split()[0] for line in found[NAMES[2]].splitlines()]
    assert "open files: limit" in found[NAMES[3]]
    assert found[NAMES[5]].splitlines() == ["# shard 0", "one line", "another", "# shard 1", "does not answer"]
    assert "max_connections = 8192\n" in found[NAMES[6]]


def test_a_large_directory_is_told_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_PATHS", 2)
    for name in "cba":
        (tmp_path / name).touch()
    lines = parts(build_archive(material(tmp_path), SnapshotRequest(1, (1,))))[NAMES[1]].splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["a", "b"]
