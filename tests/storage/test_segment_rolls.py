"""Segments for direct runs: made in groups, while small appends go on through the journal; a failure at any step."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from shardserver.errors import DiskFullError, NotOwnerError, StorageError
from shardserver.storage.disk import Act, Step
from shardserver.storage.flush import GROUP_PARTITIONS
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.fault_disk import FaultDisk, HoldingDisk
from tests.storage.log_world import SETTINGS as SMALL_SETTINGS
from tests.storage.log_world import abandon, append, read_numbers, ticking_clock
from tests.storage.scenarios import until_dead

SETTINGS = replace(SMALL_SETTINGS, journal_file_bytes=1 << 20, linger_s=60.0)
BULK, OVERSIZE = SETTINGS.direct_bytes, SETTINGS.max_write_bytes  # the latter fits no journal write
LONGEST_S = 20.0  # of what would wait for ever


class HeldDisk(HoldingDisk):
    """New segments are not begun while is_held.

    groups: how many partitions each call made segments for.
    fail_step: of the operations of the next such call; it fails.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.groups: list[int] = []
        self.is_held = False
        self.fail_step = 0

    def do_steps(self, chains: int, steps: Sequence[Step]) -> asyncio.Future:
        if not any(one.act is Act.CREATE and one.path.endswith(".log") for one in steps):
            return super().do_steps(chains, steps)
        self.groups.append(chains)
        return asyncio.ensure_future(self._do_later(chains, steps))

    async def _do_later(self, chains: int, steps: Sequence[Step]) -> object:
        while self.is_held:
            await asyncio.sleep(0)
        if self.fail_step:
            self._fail_at, self.fail_step = self.operations + self.fail_step, 0
        try:
            return await super().do_steps(chains, steps)
        finally:
            self._fail_at = 0


async def open_logs(
    disk: FaultDisk, partitions: int = 1, durability: Durability = Durability.FSYNC, settings: LogSettings = SETTINGS
) -> ShardLog:
    identities = [
        PartitionIdentity(uid, 1, uid - 1, segment_bytes=48 * 1024, durability=durability)
        for uid in range(1, partitions + 1)
    ]
    source = RecoveryInput(0, partitions + 1, identities)
    return await recover_shard(disk, "data", settings, source, ticking_clock(), lambda error: None)


def live(disk: FaultDisk, work: Callable[[ShardLog], Awaitable[None]], *more: object) -> None:
    async def life() -> None:
        logs = await open_logs(disk, *more)  # type: ignore[arg-type]
        async with asyncio.timeout(LONGEST_S):
            await work(logs)
        abandon(logs)

    asyncio.run(life())


def begin(logs: ShardLog, uid: int, number: int, size: int) -> asyncio.Task[int]:
    return asyncio.ensure_future(append(logs, uid, 1, number, size))


async def until(done: Callable[[], object]) -> None:
    while not done():
        await asyncio.sleep(0)


async def fill_segment(logs: ShardLog, disk: HeldDisk, uid: int) -> None:
    """Two large messages; the next run rolls."""
    for number in range(2):
        await append(logs, uid, 1, number, OVERSIZE)
    await logs.partition(uid).end_run()
    assert logs.partition(uid).needs_segment and len(logs.partition(uid).segments) == 1
    disk.groups.clear()


@pytest.mark.parametrize("durability", [Durability.FSYNC, Durability.WRITE])
@pytest.mark.parametrize("is_full", [True, False], ids=["a roll", "the first segment"])
def test_while_a_segment_is_made_only_what_fits_no_journal_write_waits(is_full: bool, durability: Durability) -> None:
    disk = HeldDisk(1)

    async def work(logs: ShardLog) -> None:
        log = logs.partition(1)
        first = 2 if is_full else 0
        if is_full:
            await fill_segment(logs, disk, 1)
        disk.is_held = True
        assert await append(logs, 1, 1, first, BULK) == first
        await until(lambda: disk.groups)
        assert log.running
        for number in range(first + 1, first + 4):
            assert await append(logs, 1, 1, number) == number
        large = begin(logs, 1, first + 4, OVERSIZE)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not large.done() and log.flushed_end == first
        disk.is_held = False
        assert await large == first + 4
        await log.end_run()
        assert disk.groups == [1] and log.segments[-1].base_offset == first
        assert log.flushed_end == first + 5  # the run took along what only the journal held
        assert await read_numbers(logs, 1) == list(range(first + 5))

    live(disk, work, 1, durability)


def test_more_than_one_journal_write_goes_through_it_while_a_segment_is_made() -> None:
    disk = HeldDisk(2)

    async def work(logs: ShardLog) -> None:
        disk.is_held = True
        waiting = [begin(logs, 1, number, BULK) for number in range(9)]
        assert await asyncio.gather(*waiting) == list(range(9))
        assert disk.groups == [1]

    live(disk, work)


def test_bulk_that_goes_through_the_journal_holds_back_no_other_bulk() -> None:
    """As small appends do (rule 26)."""
    disk = HeldDisk(11)

    async def work(logs: ShardLog) -> None:
        disk.is_held = True
        await append(logs, 1, 1, 0, BULK)
        assert logs._turn.small_at == 0
        await append(logs, 1, 1, 1)
        assert logs._turn.small_at > 0
        disk.is_held = False
        await logs.partition(1).end_run()

    live(disk, work)


def test_partitions_that_come_while_a_segment_is_made_share_the_next_call() -> None:
    disk, partitions = HeldDisk(3), GROUP_PARTITIONS + 6

    async def work(logs: ShardLog) -> None:
        disk.is_held = True
        uids = range(1, partitions + 1)
        await asyncio.gather(*(begin(logs, uid, 0, BULK) for uid in uids))
        assert disk.groups == [1]
        disk.is_held = False
        await until(lambda: not any(one.running for one in logs.partitions))
        assert disk.groups == [1, GROUP_PARTITIONS, 5]
        assert all(len(one.segments) == 1 and not one.needs_segment for one in logs.partitions)

    live(disk, work, partitions)


def test_a_journal_write_that_nothing_could_go_into_frees_no_files() -> None:
    """The journal has room; what waits is larger than a write of it."""
    disk = HeldDisk(4)

    async def work(logs: ShardLog) -> None:
        started: list[object] = []
        logs._start_flush = started.append  # type: ignore[method-assign]
        disk.is_held = True
        large = begin(logs, 1, 0, OVERSIZE)
        await until(lambda: disk.groups)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not started
        disk.is_held = False
        await large

    live(disk, work)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("is_full", [True, False], ids=["a roll", "the first segment"])
def test_a_failure_at_any_step_refuses_what_had_to_wait_and_the_next_try_goes_well(is_full: bool, number: int) -> None:
    kinds: set[str] = set()

    def one_life(step: int) -> bool:
        disk, acknowledged = HeldDisk(step), []

        async def work(logs: ShardLog) -> None:
            if is_full:
                await fill_segment(logs, disk, 1)
            acknowledged.extend(range(2 * is_full))
            disk.fail_step, disk._fail_errno, disk.is_held = step, number, True
            large = begin(logs, 1, 2, OVERSIZE)
            await until(lambda: disk.groups)
            disk.is_held = False
            if not await refused(large):
                acknowledged.append(2)
            for name, size in ((3, 0), (4, OVERSIZE), (5, BULK)):
                await append(logs, 1, 1, name, size)
                acknowledged.append(name)
            assert await read_numbers(logs, 1) == acknowledged

        async def refused(large: asyncio.Task[int]) -> bool:
            try:
                await large
            except StorageError as error:
                assert isinstance(error, DiskFullError) == (number == errno.ENOSPC)
                kinds.add(str(error).partition(":")[0])
                return True
            assert not disk.has_failed
            return False

        live(disk, work)
        left = disk.after_power_loss(step)

        async def look(logs: ShardLog) -> None:
            assert logs.partition(1).fenced is None
            assert await read_numbers(logs, 1) == acknowledged, f"operation {step}"

        live(left, look)
        return disk.has_failed

    assert any(not one_life(step) for step in itertools.takewhile(lambda step: step < 50, itertools.count(1)))
    assert kinds >= {"unlink", "open", "write", "sync", "sync directory"}


def test_small_appends_beside_a_failed_roll_are_answered_and_the_next_try_is_a_while_later() -> None:
    disk = HeldDisk(5)

    async def work(logs: ShardLog) -> None:
        disk.fail_step, disk.is_held = 3, True
        await append(logs, 1, 1, 0, BULK)
        large = begin(logs, 1, 1, OVERSIZE)
        await until(lambda: logs.partition(1).first_is_oversize)
        disk.is_held = False
        with pytest.raises(StorageError):
            await large
        for number in range(1, 20):
            await append(logs, 1, 1, number, BULK if number % 2 else 0)
        assert disk.groups == [1]
        assert await read_numbers(logs, 1) == list(range(20))

    live(disk, work, 1, Durability.FSYNC, replace(SETTINGS, retry_s=60.0))


def test_what_waits_for_the_journal_only_is_not_refused_when_a_roll_fails() -> None:
    disk = HeldDisk(10)

    async def work(logs: ShardLog) -> None:
        disk.held, disk.fail_step = ".journal", 3
        waiting = [begin(logs, 1, 0, 0)]
        await until(lambda: logs.journal.in_flight)
        waiting += [begin(logs, 1, number, size) for number, size in enumerate((0, BULK, 0), 1)]
        await until(lambda: disk.has_failed)
        for _ in range(100):
            await asyncio.sleep(0)
        assert disk.groups == [1] and logs.partition(1).has_waiting and not any(one.done() for one in waiting)
        disk.held = None
        assert await asyncio.gather(*waiting) == [0, 1, 2, 3]

    live(disk, work, 1, Durability.FSYNC, replace(SETTINGS, retry_s=60.0))


def test_a_failed_first_flush_of_a_memory_topic_is_tried_again_a_while_later() -> None:
    disk = HeldDisk(6)

    async def work(logs: ShardLog) -> None:
        disk.fail_step = 3
        await append(logs, 1, 1, 0, SETTINGS.flush_run_bytes)
        await until(lambda: disk.groups)
        await logs.partition(1).end_run()
        for _ in range(100):
            await asyncio.sleep(0)
        assert disk.groups == [1]

    live(disk, work, 1, Durability.MEMORY, replace(SETTINGS, retry_s=60.0))


def test_a_partition_that_was_forgotten_while_it_waited_gets_no_segment() -> None:
    disk = HeldDisk(7)

    async def work(logs: ShardLog) -> None:
        disk.is_held = True
        large = [begin(logs, uid, 0, OVERSIZE) for uid in (1, 2)]
        await until(lambda: logs.partition(2).running)
        gone = logs.partition(2)
        logs.forget_partition(2)
        with pytest.raises(NotOwnerError):
            await large[1]
        disk.is_held = False
        await logs.remove_files(2)
        assert await large[0] == 0 and disk.groups == [1]
        assert not gone.running and not gone.segments and gone.is_closed

    live(disk, work, 2)


def test_a_partition_leaves_when_what_waited_for_its_segment_is_in_it() -> None:
    disk = HeldDisk(8)

    async def work(logs: ShardLog) -> None:
        disk.is_held = True
        large = [begin(logs, uid, 0, OVERSIZE) for uid in (1, 2)]
        await until(lambda: logs.partition(2).running)
        leaving = asyncio.ensure_future(logs.moves.release_partition(2))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not leaving.done()
        disk.is_held = False
        assert (await leaving).next_offset == 1
        assert await asyncio.gather(*large) == [0, 0]

    live(disk, work, 2)


def test_a_stop_waits_for_segments_that_are_being_made() -> None:
    disk = HeldDisk(9)

    async def work(logs: ShardLog) -> None:
        disk.is_held = True
        large = [begin(logs, uid, 0, OVERSIZE) for uid in (1, 2)]
        await until(lambda: logs.partition(2).running)
        closing = asyncio.ensure_future(logs.close())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closing.done()
        disk.is_held = False
        await closing
        assert await asyncio.gather(*large) == [0, 0]

    live(disk, work, 2)

    async def look(logs: ShardLog) -> None:
        assert [await read_numbers(logs, uid) for uid in (1, 2)] == [[0], [0]]
        assert not any(one.tail.bytes for one in logs.partitions)  # nothing was replayed

    live(disk.after_kill(9), look, 2)


@pytest.mark.parametrize("left", [FaultDisk.after_kill, FaultDisk.after_power_loss], ids=["kill", "power loss"])
def test_a_crash_at_any_operation_of_a_roll_loses_nothing(left: Callable[[FaultDisk, int], FaultDisk]) -> None:
    def one_life(number: int) -> bool:
        disk, acknowledged = HeldDisk(number), [0, 1]

        async def work(logs: ShardLog) -> None:
            await fill_segment(logs, disk, 1)
            disk._die_at = disk.operations + number
            await until_dead(disk, appends(logs))

        async def appends(logs: ShardLog) -> None:
            for name, size in enumerate((BULK, 0, OVERSIZE, 0, BULK), 2):
                await append(logs, 1, 1, name, size)
                acknowledged.append(name)

        async def look(logs: ShardLog) -> None:
            assert logs.partition(1).fenced is None
            found = await read_numbers(logs, 1)
            assert found[: len(acknowledged)] == acknowledged and found == list(range(len(found))), f"{number}"
            assert await append(logs, 1, 1, len(found), OVERSIZE) == len(found)

        live(disk, work)
        live(left(disk, number), look)
        return disk.is_dead

    count = 1
    while one_life(count):
        count += 1
    assert count > 12
