"""Metadata that was lost or damaged comes back from the partitions' directories and the journals."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from shardserver.admin.rebuild import plan_rebuild
from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.identity import identity_of
from shardserver.core.identity_keeper import IdentityKeeper
from shardserver.core.metadata import Metadata, Stream
from shardserver.core.partition_label import decode_label
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.identity_file import read_identity, write_identity
from shardserver.storage.settings import Durability
from shardserver.storage.synced_write import SyncFaults
from tests.admin.stopped_data import (
    PER_BATCH,
    append,
    flip,
    make_metadata,
    make_stopped,
    open_logs,
    read_replica,
)
from tests.admin.test_repair import run, served, state

BATCHES, UNFLUSHED = 10, 3


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Partition 2 was never flushed: it stands in the journal only."""
    path = tmp_path / "data"
    asyncio.run(make_stopped(path, batches=BATCHES, unflushed=UNFLUSHED))
    return path


def replica(path: Path) -> md.Metadata:
    async def read() -> md.Metadata:
        disk = ThreadDisk(1)
        try:
            return await read_replica(disk, path)
        finally:
            await disk.shut_down()

    return asyncio.run(read())


def rebuild(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    code, said = run(capsys, "rebuild-metadata", "--data", str(path), *more)
    assert code == 0
    return said


def unnumbered(metadata: Metadata) -> dict[int, Stream]:
    """Without the numbers that permissions name streams and topics by: those are gone with the users."""
    for stream in metadata.streams.values():
        for one in (stream, *stream.topics.values()):
            one.uid = 0
    return metadata.streams


def test_all_comes_back_without_a_metadata_log(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = replica(killed)
    shutil.rmtree(killed / "metadata")
    assert run(capsys, "verify", "--data", str(killed))[0] == 1
    said = rebuild(killed, capsys)
    assert "1 streams, 1 topics, 2 partitions, 1 users" in said and "reset-root-password" in said
    after = replica(killed)
    assert unnumbered(after) == unnumbered(before) and after.next_uid == before.next_uid
    assert asyncio.run(served(killed, 1)) == list(range((BATCHES + UNFLUSHED) * PER_BATCH))
    assert asyncio.run(served(killed, 2)) == list(range(UNFLUSHED * PER_BATCH))
    assert run(capsys, "verify", "--data", str(killed)) == (0, "clean\n")


def test_a_damaged_log_is_taken_up_to_its_damage_by_repair(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = killed / "metadata" / "metadata.1"
    damaged_at = 8192  # snapshot, the user, then the stream; topic and partitions behind it
    flip(log, damaged_at + 50)
    raw = log.read_bytes()
    code, said = run(capsys, "verify", "--data", str(killed))
    assert code == 1 and f"damage metadata metadata/metadata.1 at byte {damaged_at}: expected the entry before" in said
    assert run(capsys, "repair", "--data", str(killed))[0] == 0
    assert (killed / "set-aside" / "repair.0" / "metadata" / "metadata.1").read_bytes() == raw
    assert replica(killed).users[md.ROOT_ID].password_hash == "hash"
    assert asyncio.run(served(killed, 2)) == list(range(UNFLUSHED * PER_BATCH))


def test_an_old_copy_of_the_log_gets_what_was_made_since(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, old = tmp_path / "data", tmp_path / "old"
    asyncio.run(make_metadata(path))
    shutil.copytree(path / "metadata", old)
    shutil.rmtree(path)
    later = ev.TopicCreated(1, 2, "later", 6, {}, [3], [0])
    asyncio.run(make_metadata(path, later))

    async def fill() -> None:
        async with open_logs(path) as logs:
            await append(logs, 3, 0, BATCHES)

    asyncio.run(fill())
    shutil.rmtree(path / "metadata")
    shutil.copytree(old, path / "metadata")
    code, said = run(capsys, "verify", "--data", str(path))
    assert code == 1 and "records of partition 3, which the metadata does not know: it was lost" in said
    rebuild(path, capsys)
    assert replica(path).streams[1].topics[2].name == "later"
    assert asyncio.run(served(path, 3)) == list(range(BATCHES * PER_BATCH))


def test_a_directory_without_identity_is_told_by_its_uid(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(killed / "metadata")
    (killed / "partitions" / f"{1:016x}" / "identity").unlink()
    said = rebuild(killed, capsys)
    for uid in (1, 2):
        assert f"partition {uid} has no identity: it is topic {uid:016x} of stream lost+found now" in said
    assert asyncio.run(served(killed, 1)) == list(range((BATCHES + UNFLUSHED) * PER_BATCH))
    assert asyncio.run(served(killed, 2)) == list(range(UNFLUSHED * PER_BATCH))


def test_a_dry_run_changes_nothing(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(killed)
    said = rebuild(killed, capsys, "--dry-run", "--json")
    assert json.loads(said.splitlines()[-1]) == {"rebuild": "1 streams, 1 topics, 2 partitions, 1 users"}
    assert state(killed) == before


def test_a_whole_log_stays_as_it_is(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = replica(killed)
    rebuild(killed, capsys)
    assert replica(killed) == before


def test_a_partition_that_was_purged_gives_way_to_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "data"
    asyncio.run(make_metadata(path, ev.TopicPurged(1, 1, [3, 4])))

    async def fill() -> md.Metadata:
        """Files of uid 1, which is dead, and of uid 3, which has its place."""
        async with open_logs(path) as logs:
            await append(logs, 3, 0, BATCHES)
        shutil.copytree(path / "partitions" / f"{3:016x}", path / "partitions" / f"{1:016x}")
        stale = path / "partitions" / f"{1:016x}" / "identity"
        disk = ThreadDisk(1)
        metadata = await read_replica(disk, path)
        topic = metadata.streams[1].topics[1]
        topic.partitions[0].uid = 1
        stale.unlink()
        label = identity_of(metadata.streams[1], topic, topic.partitions[0], Durability.FSYNC).label()
        await write_identity(disk, SyncFaults(), str(stale.parent), 1, label)
        await disk.shut_down()
        shutil.rmtree(path / "metadata")
        return (await plan_rebuild(str(path))).metadata

    rebuilt = asyncio.run(fill())
    assert [one.uid for one in rebuilt.streams[1].topics[1].partitions] == [3, 4]


def test_a_damaged_identity_is_no_damage_to_messages(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(killed / "partitions" / f"{1:016x}" / "identity", 40)
    code, said = run(capsys, "verify", "--data", str(killed))
    assert code == 0 and f"note identity partitions/{1:016x}/identity at byte 0: no identity" in said


def test_identity_files_follow_renames_and_moves(killed: Path) -> None:
    async def names() -> tuple[str, str, int]:
        disk = ThreadDisk(1)
        raw = await read_identity(disk, str(killed / "partitions" / f"{1:016x}"), 1)
        await disk.shut_down()
        label = decode_label(raw or b"")
        assert label is not None
        return label.stream.name, label.topic.name, label.partition.term

    async def rename() -> tuple[str, str, int]:
        async with open_logs(killed) as logs:
            disk = ThreadDisk(1)
            metadata = await read_replica(disk, killed)
            await disk.shut_down()
            ev.apply(metadata, ev.StreamRenamed(1, "other"))
            ev.apply(metadata, ev.PartitionsMoved([ev.PartitionMove(1, 1, 0, 1, 0, 2)]))
            stream = metadata.streams[1]
            topic = stream.topics[1]
            logs.partition(1).identity = identity_of(stream, topic, topic.partitions[0], Durability.FSYNC)
            keeper = IdentityKeeper(lambda: logs)
            keeper.look_at([1, 2, 3])
            await keeper.idle()
            return await names()

    assert asyncio.run(names()) == ("orders", "new", 1)
    assert asyncio.run(rename()) == ("other", "new", 2)


def test_an_empty_partition_has_no_directory(tmp_path: Path) -> None:
    async def start() -> None:
        await make_metadata(tmp_path / "data")
        async with open_logs(tmp_path / "data"):
            pass

    asyncio.run(start())
    assert list((tmp_path / "data" / "partitions").iterdir()) == []
