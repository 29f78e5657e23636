"""What a start finds in a journal: acknowledged writes whole and in order, a torn tail cut, damage refused."""

from __future__ import annotations

import asyncio
import itertools
from asyncio import Future
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from shardserver.errors import CorruptionError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.journal_reader import JournalRecovery
from tests.fault_disk import FaultDisk, FaultFile
from tests.storage.journal_world import BLOCK, SETTINGS, World, Written, numbers_of

# Writes of one block that fit into one file: the last 64 KiB and the room of one largest write are kept free.
PER_FILE = (SETTINGS.journal_file_bytes - BLOCK - 64 * 1024 - SETTINGS.max_write_bytes) // BLOCK + 1


def used_twice() -> World:
    """A ring that has gone round: two files are live, and old writes stand behind every end."""
    return World().create().live(PER_FILE * 8 + 3, keep_files=1)


def tear(world: World, before: dict[str, bytes], torn: Written, kept: tuple[int, ...]) -> None:
    """Of the last write only some blocks reached the medium; where the others belong stands what was there before."""
    whole = world.contents(torn.path)[torn.position : torn.position + torn.length]
    for block in range(torn.length // BLOCK):
        former = before[torn.path][torn.position + block * BLOCK :][:BLOCK]
        world.put(torn.path, torn.position + block * BLOCK, whole[block * BLOCK :][:BLOCK] if block in kept else former)


def subsets(blocks: int) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(range(blocks), size) for size in range(blocks + 1))


def append_one(
    world: World, *, former: int, blocks: int, payload: Callable[[int], bytes] = lambda position: b""
) -> tuple[dict[str, bytes], Written]:
    """An opening with `former` writes and one more; gives the bytes before that one. payload: for its position."""

    async def run() -> tuple[dict[str, bytes], Written]:
        journal = (await world.open()).journal
        for _ in range(former):
            await world.write(journal)
        before = {path: world.contents(path) for path in world.disk.files}
        position = world.writes[-1].position + BLOCK if former else BLOCK
        return before, await world.write(journal, blocks, payload=payload(position))

    return asyncio.run(run())


@pytest.mark.parametrize("old", [False, True], ids=["over zeros", "over old writes"])
@pytest.mark.parametrize("former", [0, 2, PER_FILE], ids=["first of the opening", "in a file", "after a rotation"])
def test_any_subset_of_a_writes_blocks_gives_all_of_it_or_nothing(former: int, old: bool) -> None:
    for kept in subsets(4):
        world = used_twice() if old else World().create()
        before, last = append_one(world, former=former, blocks=4)
        tear(world, before, last, kept)
        expected = world.expected()
        assert world.recovered() == (expected if len(kept) == 4 else expected[:-1]), kept


def test_after_a_torn_write_the_next_opening_goes_on_and_nothing_of_it_comes_back() -> None:
    for kept in subsets(3):
        world = used_twice()
        before, last = append_one(world, former=2, blocks=3)
        tear(world, before, last, kept)
        if len(kept) < 3:
            world.writes.pop()
        world.live(4)
        assert world.recovered() == world.expected(), kept


def test_headers_one_turn_old_are_not_taken_for_new_ones() -> None:
    """All writes are one block long, so behind each end stands a valid write of a former turn at its right place."""
    world = used_twice()
    for _ in range(PER_FILE * 3):
        last = world.writes[-1]
        behind = fmt.decode_write(memoryview(world.contents(last.path))[last.position + last.length :])
        assert world.recovered() == world.expected()
        world.live(1, keep_files=1)
        if last.position == BLOCK:
            assert behind is not None and behind.sequence < last.sequence


def changed(raw: bytes, **fields: int) -> bytes:
    """A journal write with other fields in its header, sealed anew."""
    copy = bytearray(raw)
    header = fmt.decode_write(memoryview(copy))
    assert header is not None
    fmt.seal_write(memoryview(copy), replace(header, **fields))
    return bytes(copy)


def torn_around_a_copy(former: int, fields: Callable[[int], dict[str, int]]) -> World:
    """A torn write of which all is there but its header; a copy of the write before stands in it, at a block boundary.

    fields: what is forged in the copy, which comes to stand at the given position.
    """
    world = used_twice()
    gap = BLOCK - fmt.WRITE_HEADER_BYTES - fmt.RECORD_HEADER_BYTES - 8

    def payload(position: int) -> bytes:
        source = world.writes[-1]
        raw = world.contents(source.path)[source.position : source.position + source.length]
        return bytes(gap) + changed(raw, **fields(position + BLOCK))

    before, last = append_one(world, former=former, blocks=3, payload=payload)
    copy = fmt.decode_write(memoryview(world.contents(last.path))[last.position + BLOCK :])
    assert copy is not None, "the copy does not stand at the block boundary"
    tear(world, before, last, (1, 2))
    world.writes.pop()
    return world


@pytest.mark.parametrize("former", [0, 1, 3], ids=["in a head", "second", "in the middle"])
def test_a_payload_that_copies_a_journal_write_is_no_write(former: int) -> None:
    """Journal id, nonce and sequence are right; the position is that of the original."""
    world = torn_around_a_copy(former, lambda position: {})
    assert world.recovered() == world.expected()


@pytest.mark.parametrize("former", [1, 3], ids=["second", "in the middle"])
def test_a_payload_with_a_journal_write_made_for_its_place_but_of_another_opening_is_no_write(former: int) -> None:
    world = torn_around_a_copy(former, lambda position: {"position": position, "nonce": 1})
    assert world.recovered() == world.expected()


@pytest.mark.parametrize("former", [1, 3], ids=["second", "in the middle"])
def test_a_valid_write_behind_an_invalid_one_is_damage(former: int) -> None:
    """The control of the tests above: with the right nonce, which no producer knows, the same bytes are a write."""
    world = torn_around_a_copy(former, lambda position: {"position": position})
    with pytest.raises(CorruptionError, match="before the valid one"):
        world.recovered()


def flip(world: World, path: str, position: int) -> None:
    world.put(path, position, bytes([world.contents(path)[position] ^ 4]))


def lives(world: World) -> World:
    """Several openings, with short and full files, that all stay live."""
    for count in (3, PER_FILE + 2, 2):
        world.live(count)
    return world


@pytest.mark.parametrize("byte", [0, 8, 12, 16, 24, 32, 40, 48, 64, 76, 100, 120, 128, 200, 4095])
def test_a_flipped_bit_before_the_last_write_is_refused_with_its_place(byte: int) -> None:
    whole = lives(World().create())
    assert whole.recovered() == whole.expected()
    for write in whole.writes[:-1]:
        flip(whole, write.path, write.position + byte)
        with pytest.raises(CorruptionError) as refused:
            whole.recovered()
        assert (refused.value.path, refused.value.position) == (write.path, write.position)
        flip(whole, write.path, write.position + byte)
    assert whole.recovered() == whole.expected()


def test_a_write_that_the_device_lost_is_refused() -> None:
    """Where an acknowledged write belongs stands what was there a turn ago, valid in itself."""
    for former in (0, 1, 4):
        world = used_twice()
        before, lost = append_one(world, former=former, blocks=1)

        async def one_more(world: World = world, lost: Written = lost) -> None:
            # The opening that has written `lost` would write on; a copy of it for the next place does the same.
            raw = world.contents(lost.path)[lost.position : lost.position + lost.length]
            world.put(lost.path, lost.position + BLOCK, changed(raw, position=lost.position + BLOCK))

        asyncio.run(one_more())
        tear(world, before, lost, ())
        with pytest.raises(CorruptionError) as refused:
            world.recovered()
        assert (refused.value.path, refused.value.position) == (lost.path, lost.position)


def test_several_damaged_writes_in_a_row_are_found() -> None:
    world = used_twice().live(12)
    for write in world.writes[-11:-1]:
        flip(world, write.path, write.position)
    with pytest.raises(CorruptionError):
        world.recovered()


def test_a_newest_file_with_a_damaged_head_is_found_beside_another_one_with_a_damaged_head() -> None:
    """The free one comes first in the order of use, so the one that matters is not where it is expected."""
    world = used_twice().live(4)
    newest = world.writes[-1].path
    free = {one.path for one in world.writes} - {one.path for one in world.writes if one.sequence >= world.oldest_live}
    for path in (min(free), newest):
        flip(world, path, BLOCK)
    assert min(free) < newest
    with pytest.raises(CorruptionError) as refused:
        world.recovered()
    assert refused.value.path == newest


def test_a_flipped_bit_in_the_torn_tail_leaves_it_a_tail() -> None:
    for byte in (0, 8, 16, 32, 40, 120, 128, BLOCK, 2 * BLOCK + 5):
        world = used_twice()
        before, last = append_one(world, former=2, blocks=3)
        tear(world, before, last, (0, 2))
        flip(world, last.path, last.position + byte)
        assert world.recovered() == world.expected()[:-1], byte


def test_damage_to_the_very_last_write_cannot_be_told_from_a_torn_one() -> None:
    world = used_twice().live(3)
    flip(world, world.writes[-1].path, world.writes[-1].position + 300)
    assert world.recovered() == world.expected()[:-1]


def test_a_damaged_free_file_is_of_no_concern() -> None:
    world = used_twice()
    live = {write.path for write in world.writes if write.sequence >= world.oldest_live}
    free = {write.path for write in world.writes} - live
    assert free
    for path in free:
        flip(world, path, BLOCK)
    assert world.recovered() == world.expected()
    world.live(PER_FILE * 3, keep_files=1)
    assert world.recovered() == world.expected()


def test_a_failure_of_any_disk_operation_is_never_the_end_of_the_log() -> None:
    for number in itertools.count(1):
        world = lives(World().create())
        world.disk = world.disk.after_kill(number)
        world.disk._fail_at = number
        try:
            found = world.recovered()
        except StorageError:
            assert world.disk.has_failed
            continue
        assert not world.disk.has_failed, f"operation {number} failed and nobody saw it"
        assert found == world.expected()
        assert number > 20
        return


def test_a_file_that_ends_early_is_refused_also_where_nothing_is_read() -> None:
    for path in sorted(used_twice().disk.files):
        world = used_twice()
        for contents in (world.disk.files[path].current, world.disk.files[path].durable):
            del contents[-BLOCK:]
        with pytest.raises(CorruptionError) as refused:
            world.recovered()
        assert refused.value.path == path


class ShortDisk(FaultDisk):
    """Reads end early from some number on."""

    def __init__(self, of: FaultDisk, number: int) -> None:
        super().__init__(1)
        self.files, self.reads, self.number = of.files, 0, number

    def read(self, file: FaultFile, position: int, buffer: memoryview) -> Future[object]:
        self.reads += 1
        return super().read(file, position, buffer[: len(buffer) // 2] if self.reads >= self.number else buffer)


def test_a_read_that_ends_early_is_never_the_end_of_the_log() -> None:
    for number in itertools.count(1):
        world = lives(World().create())
        world.disk = ShortDisk(world.disk, number)
        try:
            assert world.recovered() == world.expected() and world.disk.reads < number
        except CorruptionError:
            assert world.disk.reads >= number
            continue
        return


# Durable before visible (storage rule 16)


def test_what_a_recovery_has_found_survives_the_next_power_loss() -> None:
    """After a kill the last write is in the device's cache only: nobody had synced it."""
    lost_without = 0
    for seed in range(30):
        world = World(seed).create().live(2)

        async def killed_in_flight(world: World = world) -> None:
            journal = (await world.open()).journal
            for _ in range(2):
                await world.write(journal)
            world.disk._die_at = world.disk.operations + 2  # its write completes, its sync does not
            writing = asyncio.ensure_future(world.write(journal, 3))
            while not world.disk.is_dead:
                await asyncio.sleep(0)
            writing.cancel()

        asyncio.run(killed_in_flight())
        unrecovered = World(seed)
        unrecovered.disk = world.disk.after_power_loss(seed)
        world.disk = world.disk.after_kill(seed)
        first = world.recovered()
        assert first == [1, 2, 3, 4, 5]
        world.disk = world.disk.after_power_loss(seed)
        assert world.recovered() == first, f"seed {seed}"
        lost_without += unrecovered.recovered() != first
    assert lost_without, "the power loss takes nothing, so the test shows nothing"


def test_a_crash_at_any_operation_of_a_recovery_changes_nothing() -> None:
    for number in itertools.count(1):
        world = lives(World(number).create())
        disk: FaultDisk = world.disk.after_power_loss(number)
        expected = world.expected()
        for again in range(3):
            world.disk = disk
            disk._die_at = number

            async def until_dead(world: World = world) -> None:
                recovery = asyncio.ensure_future(world._recovered())
                while not recovery.done() and not world.disk.is_dead:
                    await asyncio.sleep(0)
                recovery.cancel()

            asyncio.run(until_dead())
            died = disk.is_dead
            disk = disk.after_kill(again) if again % 2 else disk.after_power_loss(again)
        world.disk = disk
        assert world.recovered() == expected, f"operation {number}"
        if not died:
            return


# How much is read


KIB, MIB = 1 << 10, 1 << 20
HEADS = 6 * (BLOCK + 64 * KIB) + MIB + 2 * BLOCK  # of six files, and where the next sequence would stand


def sized(file_bytes: int) -> World:
    return World(settings=replace(SETTINGS, journal_file_bytes=file_bytes)).create()


def bytes_read(world: World, passes: int) -> tuple[int, int, JournalRecovery]:
    """(bytes that opening reads, bytes with so many passes over the live files, the recovery)."""
    told = [0]

    async def run() -> tuple[int, int, JournalRecovery]:
        ring = await world.open(told.append)
        opened = ring.read_bytes
        for _ in range(passes):
            assert await numbers_of(ring) == world.expected()
        assert told == sorted(told) and told[-1] == ring.read_bytes
        return opened, ring.read_bytes, ring

    return asyncio.run(run())


def test_after_a_clean_stop_no_more_than_heads_and_one_used_part_is_read() -> None:
    found = set()
    for file_bytes in (4 * MIB, 16 * MIB):
        world = sized(file_bytes).live(20)
        world.oldest_live = 2
        world.live(100, clean=True)
        opened, total, ring = bytes_read(world, 2)
        assert ring.clean and opened == total == ring.expected_bytes
        assert opened <= HEADS + 2 * 100 * BLOCK
        found.add(opened)
    assert len(found) == 1, "it grows with the size of the ring"


def test_after_a_crash_the_newest_file_and_the_used_parts_of_live_ones_are_read() -> None:
    world = sized(4 * MIB).live(100).live(200).live(50)
    opened, total, ring = bytes_read(world, 2)
    assert not ring.clean
    assert 4 * MIB <= opened <= HEADS + 4 * MIB
    assert 2 * 300 * BLOCK <= total - opened <= 2 * 2 * 300 * BLOCK
    assert opened + 2 * 300 * BLOCK <= ring.expected_bytes <= total


def test_files_that_are_not_asked_for_are_not_read() -> None:
    world = sized(4 * MIB).live(100).live(200).live(50)

    async def run() -> list[int]:
        ring = await world.open()
        opened, found = ring.read_bytes, []
        async for one in ring.files(3):
            found.append(one.sequence)
        assert ring.read_bytes == opened
        return found

    assert asyncio.run(run()) == [3]
