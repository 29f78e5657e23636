"""Crashes while segments are sealed and deleted: what is left begins at one of the segments, and has no gap."""

from __future__ import annotations

import asyncio
import random

import pytest

from shardserver.storage.shard_log import ShardLog
from tests.fault_disk import FaultDisk
from tests.storage.log_world import Load, abandon, append, made_disk, read_numbers
from tests.storage.retention_world import HOUR_US, UIDS, MovedClock, open_logs, read_offsets
from tests.storage.retention_world import append as append_large

ROUNDS = 12
EXPIRY_US = 3 * HOUR_US


class Life:
    """A load beside a cleaner whose clock jumps. first, end: of each partition, as they were in memory last."""

    def __init__(self, seed: int, disk: FaultDisk) -> None:
        self._chance, self._disk = random.Random(seed), disk
        self.load, self.clock = Load(seed), MovedClock()
        self.first = dict.fromkeys(UIDS, 0)
        self.end = dict.fromkeys(UIDS, 0)
        self.deleted = 0

    async def run(self) -> None:
        opening = asyncio.ensure_future(open_logs(self._disk, self.clock, expiry_us=EXPIRY_US))
        while not opening.done() and not self._disk.is_dead:
            await asyncio.sleep(0)
        if not opening.done():
            return
        logs = opening.result()
        for _ in range(ROUNDS):
            look = asyncio.ensure_future(logs.retention.look())
            await self.load.run(logs, self._disk, 1)
            while not look.done() and not self._disk.is_dead:
                await asyncio.sleep(0)
            self.clock.now_us += self._chance.randrange(2 * HOUR_US)
        self._note(logs)
        abandon(logs)

    def _note(self, logs: ShardLog) -> None:
        self.deleted = logs.retention.statistics.deleted_segments
        for uid in UIDS:
            self.first[uid] = logs.partition(uid).first_offset
            self.end[uid] = logs.partition(uid).high_watermark

    async def recover(self, disk: FaultDisk) -> dict[int, list[int]]:
        """What is there after a start."""
        logs = await open_logs(disk, self.clock, expiry_us=EXPIRY_US)
        found = {uid: await read_numbers(logs, uid) for uid in UIDS}
        for uid, numbers in found.items():
            log = logs.partition(uid)
            assert log.first_offset <= self.first[uid], f"partition {uid} lost what had not expired"
            assert log.high_watermark >= self.end[uid], f"partition {uid} lost its end"
            assert len(numbers) == log.message_count and numbers == sorted(set(numbers))
            kept = {one for one in self.load.acknowledged[uid] if numbers and one >= numbers[0]}
            assert kept <= set(numbers), f"partition {uid} lost {sorted(kept - set(numbers))}"
        abandon(logs)
        return found

    async def go_on(self, disk: FaultDisk) -> None:
        """The cleaner deletes all that is there, and what is appended then is read."""
        logs = await open_logs(disk, self.clock, expiry_us=EXPIRY_US)
        self.clock.now_us += 30 * 24 * HOUR_US
        await logs.retention.look()
        await logs.retention.look()
        for uid in UIDS:
            assert logs.partition(uid).is_empty
            assert await append(logs, uid, number=7) == logs.partition(uid).first_offset
            assert await read_numbers(logs, uid) == [7]
        await logs.close()


def crash_at(seed: int, number: int, *, power_loss: bool) -> tuple[bool, int]:
    """(whether it came to the number-th operation, deleted segments)."""
    disk = made_disk(seed).after_kill(seed)
    disk._die_at = number
    life = Life(seed, disk)
    asyncio.run(life.run())
    if not disk.is_dead:
        return False, life.deleted
    left = disk.after_power_loss(seed + number) if power_loss else disk.after_kill(seed)
    first = asyncio.run(life.recover(left))
    again = left.after_power_loss(seed + 1)
    assert asyncio.run(life.recover(again)) == first, "the second recovery differs from the first"
    asyncio.run(life.go_on(again))
    return True, life.deleted


@pytest.mark.parametrize("power_loss", [True, False], ids=["power_loss", "kill"])
@pytest.mark.parametrize("seed", range(2))
def test_a_crash_at_any_operation_leaves_a_partition_that_begins_at_one_of_its_segments(
    seed: int, power_loss: bool
) -> None:
    number, deleted = 1 + seed, 0
    while True:
        came, now_deleted = crash_at(seed, number, power_loss=power_loss)
        deleted = max(deleted, now_deleted)
        if not came:
            break
        number += 7
    assert number > 100 and deleted > 1


def test_a_failure_of_any_operation_keeps_what_has_not_expired() -> None:
    deleted = 0
    for number in range(1, 400, 7):
        disk = made_disk(number).after_kill(number)
        disk._fail_at = number
        life = Life(number, disk)
        try:
            asyncio.run(life.run())
        except Exception:  # the start failed; what is there is looked at all the same
            if number > 60:
                raise
        deleted += life.deleted
        left = disk.after_power_loss(number)
        asyncio.run(life.recover(left))
        asyncio.run(life.go_on(left))
    assert deleted > 10


def lose_power_in_a_deletion(number: int) -> bool:
    """Of all sealed segments at once. False: it was over before its number-th operation."""
    disk = FaultDisk(number)

    async def live() -> int:
        logs = await open_logs(disk)
        await append_large(logs, 1, 20)
        partition = logs.partition(1)
        assert len(partition.segments) > 4
        disk._die_at = disk.operations + number
        deletion = asyncio.ensure_future(logs.retention.delete(partition, partition.segments[-1].base_offset))
        while not deletion.done() and not disk.is_dead:
            await asyncio.sleep(0)
        abandon(logs)
        return partition.first_offset

    async def look(left: FaultDisk) -> None:
        logs = await open_logs(left)
        log = logs.partition(1)
        assert log.first_offset <= first
        assert await read_offsets(logs, 1, 0) == list(range(log.first_offset, 20))
        abandon(logs)

    first = asyncio.run(live())
    if not disk.is_dead:
        return False
    for seed in range(4):
        asyncio.run(look(disk.after_power_loss(seed)))
    return True


def test_a_power_loss_while_many_segments_are_deleted_leaves_no_gap() -> None:
    number = 1
    while lose_power_in_a_deletion(number):
        number += 1
    assert number > 8
