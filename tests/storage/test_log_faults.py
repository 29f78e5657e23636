"""Every operation of the log as a crash point, on a disk that forgets what was not synced."""

import asyncio
import errno

import pytest

from shardserver.errors import StorageError
from shardserver.storage.settings import Durability
from shardserver.storage.shard_log import ShardLog
from tests.fault_disk import FaultDisk
from tests.storage.log_world import (
    Load,
    abandon,
    append,
    append_more,
    made_disk,
    open_logs,
    read_numbers,
    recover_and_check,
)
from tests.storage.scenarios import Scenario, play_log, play_metadata

ROUNDS = 25


def crash_at(seed: int, number: int, *, power_loss: bool) -> bool:
    """Die at the number-th operation, then recover twice. False: there are fewer operations."""
    disk = made_disk(seed).after_kill(seed)
    disk._die_at = number
    load = Load(seed)

    async def live() -> None:
        opening = asyncio.ensure_future(open_logs(disk))
        while not opening.done() and not disk.is_dead:
            await asyncio.sleep(0)
        if opening.done():
            await load.run(opening.result(), disk, ROUNDS)
            abandon(opening.result())

    asyncio.run(live())
    if not disk.is_dead:
        return False
    left = disk.after_power_loss(seed) if power_loss else disk.after_kill(seed)
    first = asyncio.run(recover_and_check(left, load))
    # What was visible after the first recovery is durable: the power goes, and the second one finds the same.
    again = left.after_power_loss(seed + 1)
    assert asyncio.run(recover_and_check(again, load)) == first
    asyncio.run(append_more(again, load))
    return True


@pytest.mark.parametrize("power_loss", [True, False], ids=["power_loss", "kill"])
@pytest.mark.parametrize("seed", range(2))
def test_what_was_acknowledged_survives_a_crash_at_any_operation(seed: int, power_loss: bool) -> None:
    number = 1
    while crash_at(seed, number, power_loss=power_loss):
        number += 3
    assert number > 50


@pytest.mark.parametrize("seed", [270, 8, *range(20)])
def test_lives_drawn_at_random(seed: int) -> None:
    """270: a journal write during an offsets snapshot said that the records before it were not needed any more."""
    (play_metadata if seed % 8 == 0 else play_log)(Scenario.draw(seed))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_was_acknowledged_survives_a_failure_of_any_operation(code: int) -> None:
    for number in range(1, 400, 4):
        seed = number
        disk = made_disk(seed).after_kill(seed)
        disk._fail_at, disk._fail_errno = number, code
        load = Load(seed)

        async def live(disk: FaultDisk = disk, load: Load = load) -> None:
            try:
                logs = await open_logs(disk)
            except StorageError:
                return
            await load.run(logs, disk, ROUNDS)
            abandon(logs)

        asyncio.run(live())
        left = disk.after_power_loss(seed)
        asyncio.run(recover_and_check(left, load))
        asyncio.run(append_more(left, load))
        if not disk.has_failed:
            return
    assert disk.has_failed


def test_memory_topics_lose_what_was_not_written_or_the_power_cut_proves_nothing() -> None:
    disk = made_disk(1).after_kill(1)
    load = Load(1)

    async def live() -> None:
        logs = await open_logs(disk, Durability.MEMORY)
        for _ in range(3):
            await load.run(logs, disk, 1)
        abandon(logs)

    asyncio.run(live())
    assert any(load.acknowledged.values())
    with pytest.raises(AssertionError, match="lost"):
        asyncio.run(recover_and_check(disk.after_power_loss(1), load))


def test_a_clean_stop_needs_no_replay_and_keeps_everything() -> None:
    disk = made_disk(3)
    load = Load(3)

    async def live() -> dict[int, list[int]]:
        logs = await open_logs(disk)
        await load.run(logs, disk, ROUNDS)
        found = {uid: await read_numbers(logs, uid) for uid in (1, 2)}
        await logs.close()
        return found

    async def again() -> dict[int, list[int]]:
        logs = await open_logs(disk)
        assert all(not log.tail.bytes for log in logs.partitions), "the journal held something to replay"
        return {uid: await read_numbers(logs, uid) for uid in (1, 2)}

    assert asyncio.run(live()) == asyncio.run(again())


def test_an_offset_that_nobody_waited_for_survives_a_clean_stop_and_so_does_its_deletion() -> None:
    """The journal file that the snapshot covers last is replayed over it."""
    disk = made_disk(4)

    async def stored(logs: ShardLog, consumer: int) -> None:
        outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        logs.offsets.store(logs.partition(1), 1, consumer, 0, outcome.set_result)
        assert await outcome is None

    async def live() -> None:
        logs = await open_logs(disk)
        await append(logs, 1, 5)
        await stored(logs, 7)
        await stored(logs, 8)
        logs.offsets.commit_at_least(logs.partition(1), 1, 7, 4)
        logs.offsets.delete(logs.partition(1), 1, 8, None)
        await logs.close()

    async def again() -> list[int | None]:
        logs = await open_logs(disk)
        return [logs.offsets.get(1, 1, consumer) for consumer in (7, 8)]

    asyncio.run(live())
    assert asyncio.run(again()) == [4, None]
