"""The archive of get_snapshot: its parts, its methods, and that it tells no secret."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from pathlib import Path
from types import FrameType

import msgspec
import pytest

from shardserver.config import Config
from shardserver.config_text import describe
from shardserver.core import snapshot, snapshot_archive
from shardserver.core.snapshot import run_archiver
from shardserver.core.snapshot_archive import Material, build_archive
from shardserver.protocol.system import COMPRESSIONS, SnapshotRequest

NAMES = {
    1: "filesystem_overview.txt",
    2: "process_list.txt",
    3: "resource_usage.txt",
    4: "test.txt",
    5: "server_logs.txt",
    6: "server_config.txt",
}


def material(directory: Path, compression: int = 2, types: tuple[int, ...] = (100,)) -> Material:
    logs: dict[int, list[str] | None] = {1: None, 0: ["one line", "another"]}
    request = SnapshotRequest(compression, types)
    return Material(str(directory), os.getppid(), describe(Config()), logs, None, request)


def parts(raw: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("types", [(100,), ()])
def test_any_method_packs_all_parts(tmp_path: Path, compression: int, types: tuple[int, ...]) -> None:
    found = parts(build_archive(material(tmp_path, compression, types)))
    assert list(found) == list(NAMES.values()) and all(found.values())


def test_only_the_parts_that_are_asked_for_are_there(tmp_path: Path) -> None:
    for kind, name in NAMES.items():
        assert list(parts(build_archive(material(tmp_path, types=(kind,))))) == [name]
    assert list(parts(build_archive(material(tmp_path, 1, (6, 4, 4))))) == [NAMES[4], NAMES[6]]


def test_each_part_says_what_it_is_named_for(tmp_path: Path) -> None:
    (tmp_path / "shard-0").mkdir()
    (tmp_path / "shard-0" / "journal").write_bytes(bytes(5000))
    found = parts(build_archive(material(tmp_path)))
    assert any(line.split()[::2] == ["5000", "shard-0/journal"] for line in found[NAMES[1]].splitlines())
    assert str(os.getppid()) in [line.split()[0] for line in found[NAMES[2]].splitlines()]
    assert "open files: limit" in found[NAMES[3]]
    assert found[NAMES[5]].splitlines() == ["# shard 0", "one line", "another", "# shard 1", "does not answer"]
    assert "max_connections = 8192\n" in found[NAMES[6]]


def test_a_large_directory_is_told_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_archive, "MAX_PATHS", 2)
    for name in "cba":
        (tmp_path / name).touch()
    lines = parts(build_archive(material(tmp_path, 1, (1,))))[NAMES[1]].splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["a", "b"]


def events_of(directory: Path) -> tuple[int, dict[str, str]]:
    """Calls and returns in the thread that makes an archive, and what is in that."""
    found: list[str] = []
    made: list[bytes] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        found.append(event)

    def work() -> None:
        made.append(run_archiver(msgspec.msgpack.encode(material(directory))))

    threading.setprofile(note)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]  # typeshed knows no None here
    return len(found), parts(made[0])


def test_the_shard_runs_as_much_python_for_an_archive_of_many_files_as_of_one(tmp_path: Path) -> None:
    """Storage rule 29: walking and packing are another process's work."""
    events_of(tmp_path)  # modules are imported, and caches filled, once
    counts = []
    for files in (1, 1000):
        for number in range(files):
            (tmp_path / f"{number}").touch()
        count, found = events_of(tmp_path)
        assert len(found[NAMES[1]].splitlines()) == 1 + files
        counts.append(count)
    assert 0 < counts[0] == counts[1]


def test_the_archiver_has_a_session_of_its_own_to_send_to_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[tuple[int, int]] = []
    monkeypatch.setattr(snapshot, "send_to_background", lambda process: sessions.append((process, os.getsid(process))))
    run_archiver(msgspec.msgpack.encode(material(tmp_path)))
    ((process, session),) = sessions
    assert session == process
