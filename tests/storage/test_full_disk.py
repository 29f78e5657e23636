"""A full disk: appends are refused with an error that says so, reads and metadata go on, and room mends it all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shardserver.errors import DiskFullError
from shardserver.storage.append_log import Admission
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.reserve import Reserve
from shardserver.storage.settings import Durability
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.space import SpaceWatch
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import (
    SETTINGS,
    UIDS,
    Load,
    abandon,
    append,
    append_more,
    check_oracle,
    made_disk,
    open_logs,
    read_numbers,
    recover_and_check,
)

RESERVE = "data/reserve"
LONGEST_S = 20.0  # of what would wait for ever


async def fill(logs: ShardLog, load: Load, uid: int = 1) -> object:
    """Append until something is refused."""
    while True:
        outcome: asyncio.Future = asyncio.get_running_loop().create_future()
        load.number += 1
        number = load.number
        logs.partition(uid).append(make_batch([f"{number} ".encode() + b"x" * 9000]), 1, outcome.set_result)
        result = await outcome
        if not isinstance(result, int):
            return result
        load.acknowledged[uid].append(number)


def test_appends_are_refused_in_the_middle_and_taken_again_when_there_is_room() -> None:
    disk = made_disk(1).after_kill(1)
    disk.capacity_bytes = disk._used() + 300_000
    load = Load(1)

    async def live() -> None:
        logs = await open_logs(disk)
        for _ in range(3):  # full, more room, full again
            assert isinstance(await fill(logs, load), DiskFullError)
            found = {uid: await read_numbers(logs, uid) for uid in UIDS}
            check_oracle(load, found)
            disk.capacity_bytes += 200_000
            await asyncio.sleep(0.01)
        assert logs.failed is None
        abandon(logs)

    asyncio.run(live())
    assert len(load.acknowledged[1]) > 50
    left = disk.after_power_loss(1)
    asyncio.run(recover_and_check(left, load))
    left.capacity_bytes = None
    asyncio.run(append_more(left, load))


def test_a_start_without_a_free_byte_serves_what_is_there() -> None:
    disk = made_disk(2).after_kill(2)
    disk.capacity_bytes = disk._used() + 200_000
    load = Load(2)

    async def live() -> None:
        logs = await open_logs(disk)
        await fill(logs, load)
        abandon(logs)

    asyncio.run(live())
    left = disk.after_kill(2)
    left.capacity_bytes = left._used()
    asyncio.run(recover_and_check(left, load))
    left = left.after_power_loss(3)
    left.capacity_bytes = left._used()
    asyncio.run(recover_and_check(left, load))


def test_the_metadata_log_lives_on_the_reserve_and_then_refuses_until_there_is_room() -> None:
    disk = FaultDisk(1)
    entries: list[bytes] = []

    async def live() -> None:
        reserve = Reserve(disk, RESERVE, 1 << 20)
        await reserve.make()
        assert reserve.is_there and len(disk.files[RESERVE].current) == 1 << 20
        log = MetadataLog(disk, "data/metadata", reserve=reserve)
        await log.replay()
        disk.capacity_bytes = disk._used()
        with pytest.raises(DiskFullError):
            while True:
                entry = b"%d " % len(entries) + b"x" * 30_000
                await log.append(entry)
                entries.append(entry)
        assert len(entries) > 20 and RESERVE not in disk.files and not reserve.is_there
        disk.capacity_bytes = None
        entries.append(b"after")
        await log.append(b"after")

    async def read() -> list[bytes]:
        return (await MetadataLog(disk.after_power_loss(1), "data/metadata").replay())[1]

    asyncio.run(live())
    assert asyncio.run(read()) == entries


def test_without_a_reserve_an_entry_that_found_no_room_never_comes_back() -> None:
    disk = FaultDisk(1)

    async def live() -> list[bytes]:
        log = MetadataLog(disk, "data/metadata")
        await log.replay()
        disk.capacity_bytes = disk._used() + 6000
        with pytest.raises(DiskFullError):
            await log.append(b"x" * 9000)
        await log.append(b"y")
        return (await MetadataLog(disk.after_power_loss(2), "data/metadata").replay())[1]

    assert asyncio.run(live()) == [b"y"]


def test_below_the_low_watermark_appends_are_refused_until_a_quarter_more_is_free() -> None:
    disk = FaultDisk(1, capacity_bytes=1000)
    admission = Admission()
    watch = SpaceWatch(disk, "data", 800, admission, Reserve(disk, RESERVE, 0))

    async def after(free: int) -> bool:
        disk.capacity_bytes = free
        await watch.look()
        return admission.refusal is None

    async def run() -> list[bool]:
        return [await after(free) for free in (1000, 800, 799, 900, 999, 1000, 900, 700)]

    assert asyncio.run(run()) == [True, True, False, False, False, True, True, False]
    assert isinstance(admission.refusal, DiskFullError)


def test_the_watch_makes_the_reserve_again_when_there_is_room_for_it_above_the_watermark() -> None:
    disk = FaultDisk(1, capacity_bytes=3 << 20)
    reserve = Reserve(disk, RESERVE, 2 << 20)
    watch = SpaceWatch(disk, "data", 2 << 20, Admission(), reserve)

    async def run() -> None:
        await watch.look()
        assert not reserve.is_there
        disk.capacity_bytes = 4 << 20
        await watch.look()
        assert reserve.is_there
        again = Reserve(disk, RESERVE, 2 << 20)
        await again.find()
        assert again.is_there

    asyncio.run(run())


def test_an_append_is_refused_while_the_disk_is_low_and_reads_go_on() -> None:
    disk = made_disk(4).after_kill(4)
    load = Load(4)

    async def live() -> None:
        logs = await open_logs(disk)
        await load.run(logs, disk, 5)
        before = {uid: await read_numbers(logs, uid) for uid in UIDS}
        logs.resources.admission.refusal = DiskFullError("low")
        refused = load.refused
        await load.run(logs, disk, 5)
        assert load.refused > refused
        assert {uid: await read_numbers(logs, uid) for uid in UIDS} == before
        await logs.close()

    asyncio.run(live())


async def fill_ring(logs: ShardLog) -> None:
    """With what no segment has room for, until the journal takes no more."""
    number = 0
    while logs._background.error is None:
        number += 1
        await append(logs, 2, 1, number, size=9000)
        await asyncio.sleep(2 * SETTINGS.linger_s)


async def full_ring() -> FaultDisk:
    """Of a disk without a free byte: one life has filled all files but the last, the next one has taken that.

    Partition 1 has ten messages, and an offset 19 of others that only memory had.
    """
    disk = FaultDisk(1)
    logs = await open_logs(disk, Durability.MEMORY)
    await append(logs, 1, 10)
    await logs.flush_partitions([logs.partition(1)])
    disk.capacity_bytes = disk._used()
    await fill_ring(logs)
    abandon(logs)
    disk = disk.after_kill(1)
    logs = await open_logs(disk, Durability.MEMORY)
    await append(logs, 1, 10, 10)
    for log in logs._turn.dirty_logs():
        logs._turn.take(log)  # the offset is journaled, the messages are not
    logs.offsets.store(logs.partition(1), 1, 7, 19, None)
    await logs._publish()
    await fill_ring(logs)
    abandon(logs)
    return disk.after_power_loss(1)


async def until_taken(logs: ShardLog) -> None:
    while logs.resources.admission.refusal is not None:
        await asyncio.sleep(SETTINGS.retry_s)


def test_a_journal_without_a_free_file_takes_appends_again_when_there_is_room() -> None:
    """The file that each opening keeps for the next one had been taken with the disk full."""

    async def life() -> None:
        disk = await full_ring()
        disk.capacity_bytes = None
        logs = await open_logs(disk)
        assert await append(logs, 2, 1, 1000) == logs.partition(2).next_offset - 1
        await logs.close()

    asyncio.run(asyncio.wait_for(life(), LONGEST_S))


def test_a_full_ring_is_freed_when_a_direct_run_has_moved_what_no_flush_could() -> None:
    """The flush that looks again finds nothing to move, and no write has said so yet."""

    async def life() -> None:
        disk = FaultDisk(1)
        logs = await open_logs(disk, settings=replace(SETTINGS, retry_s=LONGEST_S))
        await append(logs, 2)
        await logs.flush_partitions([logs.partition(2)])  # it has a segment, or its run would wait for one
        disk.capacity_bytes = disk._used()
        assert isinstance(await fill(logs, Load(1), 2), DiskFullError)
        await logs.wait_idle()
        disk.capacity_bytes = None
        await append(logs, 2, size=SETTINGS.direct_bytes)
        assert logs._oldest_live() == logs.journal.sequence > logs.journal.published_oldest_live
        with pytest.raises(DiskFullError):  # as the last flush says
            await append(logs, 1)
        await logs.wait_idle()
        await append(logs, 1)
        await logs.close()

    asyncio.run(asyncio.wait_for(life(), LONGEST_S / 2))


def test_nothing_is_appended_before_cut_offsets_have_room_in_the_journal() -> None:
    """Rule 13, `memory`: with ring and disk full a start cannot write them; a run into a segment could, and would pass
    them: a crash then would bring back the offset as it was, and its consumer would skip what is new.
    """

    async def life() -> None:
        disk = await full_ring()
        logs = await open_logs(disk, Durability.MEMORY)
        assert logs.partition(1).next_offset == 10
        assert logs.offsets.get(1, 1, 7) == 9 and logs.offsets.waiting
        with pytest.raises(DiskFullError):
            await append(logs, 1)
        disk.capacity_bytes = None
        await until_taken(logs)
        await append(logs, 1, 30, 10)
        await logs.flush_partitions([logs.partition(1)])
        abandon(logs)
        logs = await open_logs(disk.after_power_loss(2), Durability.MEMORY)
        assert logs.partition(1).next_offset == 40
        assert logs.offsets.get(1, 1, 7) == 9
        abandon(logs)

    asyncio.run(asyncio.wait_for(life(), LONGEST_S))


def test_a_shard_whose_cut_offsets_wait_for_room_ends_when_it_is_told_to() -> None:
    async def life() -> None:
        logs = await open_logs(await full_ring(), Durability.MEMORY)
        assert logs.offsets.waiting
        await logs.close()

    asyncio.run(asyncio.wait_for(life(), LONGEST_S))
