"""The ring as a whole: built whole or not at all, all files of one journal, and staging that nobody touches."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable

import pytest

from shardserver.errors import CorruptionError
from shardserver.storage import journal_format as fmt
from shardserver.storage.journal import create_journal
from shardserver.storage.synced_write import SyncFaults
from tests.fault_disk import FaultDisk
from tests.storage.journal_world import BLOCK, SETTINGS, World
from tests.storage.log_world import Load, abandon, append_more, open_logs
from tests.storage.scenarios import until_dead


def ring_of(disk: FaultDisk, parent: str = "data") -> list[str]:
    return sorted(name for name in disk.files if name.startswith(f"{parent}/journal/"))


def left_after(disk: FaultDisk, seed: int) -> FaultDisk:
    return disk.after_power_loss(seed) if seed % 2 else disk.after_kill(seed)


def test_a_crash_at_any_operation_of_the_creation_leaves_a_whole_ring_or_none() -> None:
    seen = set()
    for number, seed in ((number, seed) for number in itertools.count(1) for seed in range(4)):
        disk = FaultDisk(seed, die_at=number)
        finished = asyncio.run(until_dead(disk, _create(disk)))
        left = left_after(disk, seed)
        paths = ring_of(left)
        seen.add(len(paths))
        assert len(paths) in (0, SETTINGS.journal_files), f"operation {number}, seed {seed}: {paths}"
        for place, path in enumerate(paths):
            header = fmt.decode_file_header(memoryview(left.files[path].current))
            assert header is not None and header.number == place
            assert len(left.files[path].current) == SETTINGS.journal_file_bytes
            assert not any(left.files[path].current[BLOCK:])
        if finished:
            assert len(paths) == SETTINGS.journal_files
            break
    assert seen == {0, SETTINGS.journal_files}


async def _create(disk: FaultDisk) -> bool:
    await create_journal(disk, SyncFaults(), "data", SETTINGS)
    return True


def test_a_start_after_a_crash_in_the_creation_builds_the_ring_and_takes_messages() -> None:
    for number in itertools.count(1):
        disk = FaultDisk(number, die_at=number)

        async def first_start(disk: FaultDisk = disk) -> bool:
            logs = await until_dead(disk, open_logs(disk))
            if logs is not None:
                abandon(logs)
            return logs is not None

        finished = asyncio.run(first_start())
        asyncio.run(append_more(left_after(disk, number), Load(number)))
        if finished:
            return


def test_a_missing_file_is_refused_by_its_name_whichever_it_is() -> None:
    for number in range(SETTINGS.journal_files):
        world = World().create().live(5)
        path = f"data/journal/{number:05d}.journal"
        del world.disk.files[path]
        with pytest.raises(CorruptionError) as refused:
            world.recovered()
        assert refused.value.path == path


def test_an_empty_directory_is_no_journal() -> None:
    world = World()
    world.disk.files["data/journal/note.txt"] = World().create().disk.files["data/journal/00000.journal"]
    with pytest.raises(CorruptionError, match=r"00000\.journal"):
        world.recovered()


@pytest.mark.parametrize("number", range(SETTINGS.journal_files))
def test_a_file_of_another_journal_is_refused(number: int) -> None:
    world, other = World().create().live(5), World().create().live(5)
    path = f"data/journal/{number:05d}.journal"
    world.disk.files[path] = other.disk.files[path]
    with pytest.raises(CorruptionError, match="journal id") as refused:
        world.recovered()
    odd = max(number, 1)  # of two that differ the second is named
    assert (refused.value.path, refused.value.position) == (f"data/journal/{odd:05d}.journal", 16)


def test_a_file_in_the_place_of_another_is_refused() -> None:
    world = World().create().live(5)
    world.disk.files["data/journal/00002.journal"] = world.disk.files["data/journal/00001.journal"]
    with pytest.raises(CorruptionError, match="number in the file's name") as refused:
        world.recovered()
    assert refused.value.path == "data/journal/00002.journal"


def test_two_files_with_one_sequence_are_refused() -> None:
    """Somebody has put an old copy of a file back, but for its header."""
    world = World().create().live(5)
    first = world.writes[0]
    for path in ring_of(world.disk)[3:4]:
        world.put(path, BLOCK, world.contents(first.path)[BLOCK:])
    with pytest.raises(CorruptionError, match="another sequence"):
        world.recovered()


@pytest.mark.parametrize("byte", [0, 8, 9, 10, 12, 16, 24, 32])
def test_a_damaged_file_header_is_refused_with_its_path(byte: int) -> None:
    for number in range(SETTINGS.journal_files):
        world = World().create().live(5)
        path = f"data/journal/{number:05d}.journal"
        world.put(path, byte, bytes([world.contents(path)[byte] ^ 1]))
        with pytest.raises(CorruptionError) as refused:
            world.recovered()
        assert (refused.value.path, refused.value.position) == (path, 0)


# Staging (storage rule 21)


class HeldDisk(FaultDisk):
    """Keeps each write's own memory, and compares it at completion with what it was at submission."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.changed: list[int] = []
        self.completed = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def write(self, file, position, buffers, *, sync=False, on_written=None):  # type: ignore[no-untyped-def]
        before = b"".join(buffers)

        def compare() -> None:
            self.completed += 1
            self.meanwhile()
            if b"".join(buffers) != before:
                self.changed.append(position)
            if on_written is not None:
                on_written()

        return super().write(file, position, buffers, sync=sync, on_written=compare)


def test_the_bytes_of_a_write_stay_as_they_are_until_it_has_completed() -> None:
    world = World()
    world.disk = HeldDisk(1)
    world.create()

    async def run() -> None:
        journal = (await world.open()).journal
        tried = []

        def meanwhile() -> None:
            tried.append(journal.begin() or journal.begin_reserved())
            if tried[-1]:
                journal.staging.add(1, 0, 0, 1, 1, bytes(300))

        world.disk.meanwhile = meanwhile
        for _ in range(5):
            await world.write(journal, 2)
        assert tried == [False] * 5
        assert journal.begin()

    asyncio.run(run())
    assert not world.disk.changed and world.disk.completed > 5


def test_nothing_is_written_behind_a_write_that_failed() -> None:
    world = World().create()

    async def run() -> None:
        journal = (await world.open()).journal
        await world.write(journal)
        world.disk._fail_at = world.disk.operations + 1
        with pytest.raises(Exception, match="injected"):
            await world.write(journal)
        assert not journal.begin() and not journal.begin_reserved()

    asyncio.run(run())
    assert os.path.basename(world.writes[-1].path) == "00000.journal"


async def used_when_due(world: World, files: int, share: float, unflushed_bytes: int) -> int:
    """How many files of a grown ring are in use when its oldest one is to be freed."""
    journal = (await world.open()).journal
    while journal.files < files:
        await journal.grow("data/journal")
    journal.plan_flush(share, unflushed_bytes)
    while not journal.is_flush_due:
        await world.write(journal, 3)
    await journal.close()
    return journal.files_in_use


@pytest.mark.parametrize(
    ("files", "share", "unflushed_files", "used"),
    [
        (20, 1.0, 20, 11),  # all partitions keep the oldest file: half of the ring, and one
        (20, 0.7, 20, 14),
        (20, 0.1, 20, 16),  # few do: three quarters
        (20, 0.1, 12, 13),  # or what memory has room for
        (20, 0.1, 2, 11),  # but half of it as ever
        (8, 0.1, 8, 6),  # three of the six that are configured stay free
        (6, 0.1, 6, 4),
    ],
)
def test_a_file_is_freed_the_later_the_fewer_partitions_keep_it(
    files: int, share: float, unflushed_files: int, used: int
) -> None:
    room = unflushed_files * SETTINGS.journal_file_bytes
    assert asyncio.run(used_when_due(World().create(), files, share, room)) == used
