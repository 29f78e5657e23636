"""Each kind of damage: verify names it with path and position, repair takes it out, a start serves the rest."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path

import pytest

from shardserver.cli.main import main
from tests.admin.stopped_data import (
    PER_BATCH,
    append,
    batch_position,
    flip,
    make_stopped,
    open_logs,
    read_all,
    segments,
)

# Byte of a batch that is hit.
HIT = {"payload": 600, "message checksum": 256, "batch length": 32, "base offset": 8, "batch checksum": 40, "count": 48}
PLACES = ("first batch", "last batch of a segment", "last segment", "the end")
BATCHES = 60
ALL = list(range(BATCHES * PER_BATCH))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    return code, capsys.readouterr().out


def state(path: Path) -> dict[str, str]:
    """Each name, and a digest of each file."""
    return {
        str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() if one.is_file() else ""
        for one in sorted(path.rglob("*"))
    }


async def served(path: Path, uid: int = 1) -> list[int]:
    """What polls give after a start; and that it takes new messages, which a second start serves too."""
    async with open_logs(path) as logs:
        found = await read_all(logs, uid)
        assert logs.partition(uid).set_aside is None
        await append(logs, uid, 10_000, 1)
    async with open_logs(path) as logs:
        assert await read_all(logs, uid) == [*found, 10_000, 10_001]
    return found


def mend(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """verify finds damage, repair mends it and finds none any more; gives what verify said."""
    code, said = run(capsys, "verify", "--data", str(path))
    assert code == 1, said
    code, done = run(capsys, "repair", "--data", str(path))
    assert code == 0, done
    return said


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    asyncio.run(make_stopped(path, batches=BATCHES))
    assert len(segments(path, 1)) >= 3
    return path


def test_a_sound_directory_is_clean_and_stays_as_it_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(data)
    assert run(capsys, "verify", "--data", str(data)) == (0, "clean\n")
    assert run(capsys, "repair", "--data", str(data)) == (0, "clean\n")
    assert {name for name in state(data) if "lock" not in name} == {name for name in before if "lock" not in name}


@pytest.mark.parametrize(
    ("place", "hit"), [*((place, "payload") for place in PLACES), *(("middle", hit) for hit in HIT)]
)
def test_a_flipped_bit_costs_its_batch(place: str, hit: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = segments(data, 1)
    bases = [int(one.stem) for one in files]
    number = {
        "first batch": 0,
        "middle": bases[1] + 2 * PER_BATCH,
        "last batch of a segment": bases[1] - PER_BATCH,
        "last segment": bases[-1],
        "the end": BATCHES * PER_BATCH - PER_BATCH,
    }[place]
    file = [one for one, base in zip(files, bases, strict=True) if base <= number][-1]
    position = batch_position(file, number)
    flip(file, position + HIT[hit])
    said = mend(data, capsys)
    assert f"damage segment {file.relative_to(data)} at byte {position}: no valid batch with offset {number};" in said
    found = asyncio.run(served(data))
    lost = set(ALL) - set(found)
    assert found == sorted(found) and number in lost and len(found) + len(lost) == len(ALL)
    if hit == "payload":  # its header is proved, so nothing else is lost; else the rest of that segment is
        assert lost == {number, number + 1}
    assert lost <= set(range(number, [*bases, len(ALL)][bases.index(int(file.stem)) + 1]))


def test_looking_and_a_dry_run_change_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(segments(data, 1)[1], 5000)
    before = state(data)
    assert run(capsys, "verify", "--data", str(data))[0] == 1
    code, planned = run(capsys, "repair", "--dry-run", "--data", str(data))
    assert code == 1 and "would take the damage out of partition 1" in planned and state(data) == before
    assert run(capsys, "repair", "--data", str(data))[0] == 0
    assert run(capsys, "verify", "--data", str(data))[0] == 0


def test_what_is_taken_out_is_kept_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = segments(data, 1)[1]
    flip(file, batch_position(file, int(file.stem)) + HIT["payload"])
    damaged = file.read_bytes()
    mend(data, capsys)
    kept = data / "set-aside" / "repair.0" / file.relative_to(data)
    assert kept.read_bytes() == damaged


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_damaged_segment_header_costs_nothing(number: int, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = segments(data, 1)[number]
    flip(file, 20)
    assert f"damage segment {file.relative_to(data)} at byte 0: no segment header of partition 1" in mend(data, capsys)
    assert asyncio.run(served(data)) == ALL


@pytest.mark.parametrize("number", [1, -1])
def test_a_segment_that_is_gone_leaves_a_hole(number: int, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = segments(data, 1)
    bases = [*(int(one.stem) for one in files), len(ALL)]
    lost = set(range(bases[number % len(files)], bases[number % len(files) + 1]))
    files[number].unlink()
    mend(data, capsys)
    assert asyncio.run(served(data)) == [one for one in ALL if one not in lost]


def test_a_partition_directory_that_is_gone_goes_on_where_it_ended(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(data / "partitions" / f"{1:016x}")
    mend(data, capsys)

    async def next_offset() -> int:
        async with open_logs(data) as logs:
            return logs.partition(1).next_offset

    assert asyncio.run(next_offset()) == len(ALL)
    assert asyncio.run(served(data)) == []


def test_a_segment_cut_short_costs_its_end(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = segments(data, 1)[-1]
    number = int(file.stem) + PER_BATCH
    file.write_bytes(file.read_bytes()[: batch_position(file, number) + 100])
    mend(data, capsys)
    assert asyncio.run(served(data)) == [one for one in ALL if one < number]


def test_a_torn_end_is_no_damage(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = segments(data, 1)[-1]
    with file.open("ab") as out:
        out.write(b"torn".ljust(4096, b"\1"))
    code, said = run(capsys, "verify", "--data", str(data))
    assert code == 0 and f"note segment {file.relative_to(data)}" in said and "a torn end of 4096 bytes" in said
    assert asyncio.run(served(data)) == ALL


def test_foreign_files_are_named_and_left_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = [data / "notes.txt", data / "partitions" / "lost+found", segments(data, 1)[0].with_name("mine.log")]
    for one in foreign:
        one.write_text("mine")
    code, said = run(capsys, "verify", "--data", str(data))
    assert code == 0 and all(f"note directory {one.relative_to(data)}" in said for one in foreign)
    assert run(capsys, "repair", "--data", str(data))[0] == 0
    assert asyncio.run(served(data)) == ALL
    assert all(one.read_text() == "mine" for one in foreign)


def test_an_index_that_is_damaged_or_missing_is_made_again(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = segments(data, 1)[0].with_suffix(".index")
    index.write_bytes(b"nonsense".ljust(4096, b"\0"))
    code, said = run(capsys, "verify", "--data", str(data))
    assert code == 0 and f"note index {index.relative_to(data)} at byte 0: " in said
    assert run(capsys, "repair", "--data", str(data))[0] == 0 and not index.exists()
    assert run(capsys, "verify", "--data", str(data)) == (0, "clean\n")
    assert asyncio.run(served(data)) == ALL


def test_a_damaged_snapshot_of_offsets_costs_the_offsets(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def commit() -> None:
        async with open_logs(data) as logs:
            logs.offsets.store(logs.partition(1), 1, 7, 9, None)

    asyncio.run(commit())
    snapshot = data / "shards" / "0" / "offsets"
    flip(snapshot, 50)
    assert "damage offsets shards/0/offsets at byte 0: expected a snapshot" in mend(data, capsys)
    assert asyncio.run(served(data)) == ALL


@pytest.mark.parametrize("arguments", [["verify"], ["repair"], ["repair", "--dry-run"]])
def test_a_directory_without_data_is_code_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *arguments, "--data", str(tmp_path / "none"))[0] == 2
    assert not (tmp_path / "none").exists()
