"""Damage in a journal: each write and head that can be hit, and what a start serves after the repair."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shardserver.storage import journal_format as fmt
from tests.admin.stopped_data import PER_BATCH, make_stopped
from tests.admin.test_repair import flip, mend, run, served

BATCHES, UNFLUSHED = 20, 12


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    asyncio.run(make_stopped(path, batches=BATCHES, unflushed=UNFLUSHED))
    return path


def newest_writes(path: Path) -> tuple[Path, list[fmt.WriteHeader]]:
    found: list[tuple[int, Path, list[fmt.WriteHeader]]] = []
    for file in sorted((path / "shards" / "0" / "journal").glob("*.journal")):
        raw, position, writes = memoryview(file.read_bytes()), 4096, []
        while (write := fmt.decode_write(raw[position:])) is not None:
            if writes and write.nonce != writes[0].nonce:
                break
            writes.append(write)
            position += write.length
        if writes:
            found.append((writes[0].sequence, file, writes))
    _, file, writes = max(found)
    return file, writes


def test_a_killed_server_s_directory_is_clean(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", "--data", str(killed))[0] == 0


@pytest.mark.parametrize(("place", "byte"), [(0, 3), (0.6, 200)])
def test_a_damaged_write_costs_what_only_it_held(
    place: float, byte: int, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, writes = newest_writes(killed)
    hit = writes[int(place * (len(writes) - 1))]
    raw = memoryview(file.read_bytes())[hit.position : hit.position + hit.length]
    lost: dict[int, set[int]] = {1: set(), 2: set()}
    for record in fmt.decode_records(raw, hit, str(file)):
        if record.kind == fmt.KIND_BATCH:
            base = int.from_bytes(record.payload[8:16], "little")
            lost[record.uid] |= {base, base + 1} if record.uid == 2 or base >= BATCHES * PER_BATCH else set()
    flip(file, hit.position + byte)
    said = mend(killed, capsys)
    assert f"damage journal shards/0/journal/{file.name} at byte {hit.position}: no valid journal write" in said
    assert asyncio.run(served(killed, 1)) == [n for n in range((BATCHES + UNFLUSHED) * PER_BATCH) if n not in lost[1]]
    assert asyncio.run(served(killed, 2)) == [n for n in range(UNFLUSHED * PER_BATCH) if n not in lost[2]]


def test_a_damaged_file_header_costs_nothing(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = newest_writes(killed)
    flip(file, 20)
    assert f"damage journal shards/0/journal/{file.name} at byte 0: no journal file header" in mend(killed, capsys)
    assert asyncio.run(served(killed, 1)) == list(range((BATCHES + UNFLUSHED) * PER_BATCH))
    assert asyncio.run(served(killed, 2)) == list(range(UNFLUSHED * PER_BATCH))


def test_a_blank_journal_file_that_is_gone_costs_nothing(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (killed / "shards" / "0" / "journal" / "00003.journal").unlink()
    assert "00003.journal at byte 0: the journal file is missing" in mend(killed, capsys)
    assert asyncio.run(served(killed, 1)) == list(range((BATCHES + UNFLUSHED) * PER_BATCH))


def test_a_torn_last_write_is_no_damage(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, writes = newest_writes(killed)
    flip(file, writes[-1].position + 200)
    assert run(capsys, "verify", "--data", str(killed))[0] == 0


def test_the_former_journal_is_kept_whole(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, writes = newest_writes(killed)
    flip(file, writes[len(writes) // 2].position + 200)
    before = file.read_bytes()
    mend(killed, capsys)
    assert (killed / "set-aside" / "repair.0" / "shards" / "0" / "journal" / file.name).read_bytes() == before
