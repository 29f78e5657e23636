"""One life of a shard's logs with one fault in it, then recoveries with faults of their own, then the oracle.

A scenario is drawn from its seed alone, so that the line printed at a failure reproduces it.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from shardserver.errors import StorageError
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.settings import Durability
from tests.fault_disk import FaultDisk
from tests.storage.log_world import Load, abandon, append_more, made_disk, open_logs, recover_and_check

ROUNDS = 25
LONGEST_LIFE = 900
LONGEST_S = 60.0  # of a life that takes a tenth of a second

Result = TypeVar("Result")


@dataclass(frozen=True)
class Scenario:
    """number: the operation at which the fault falls. crashes: operations at which the recoveries die, in order."""

    seed: int
    fault: str
    number: int
    left: str
    fresh: bool
    crashes: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int) -> Scenario:
        chance = random.Random(seed)
        return cls(
            seed,
            chance.choice(("die", "die", "EIO", "ENOSPC")),
            int(LONGEST_LIFE * chance.random() ** 2) + 1,
            chance.choice(("power loss", "kill")),
            chance.random() < 0.2,
            tuple(int(60 * chance.random() ** 2) + 1 for _ in range(chance.choice((0, 0, 1, 3)))),
        )

    def disk(self, former: FaultDisk) -> FaultDisk:
        disk = former.after_kill(self.seed)
        if self.fault == "die":
            disk._die_at = self.number
        else:
            disk._fail_at, disk._fail_errno = self.number, getattr(errno, self.fault)
        return disk

    def remains(self, disk: FaultDisk, seed: int) -> FaultDisk:
        return disk.after_power_loss(seed) if self.left == "power loss" else disk.after_kill(seed)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Raises TimeoutError: it waits for something that does not come."""
    return asyncio.run(asyncio.wait_for(work, LONGEST_S))


async def until_dead(disk: FaultDisk, work: Awaitable[Any]) -> Any:
    """The result of work, or None when the modelled process died in it or the disk refused it."""
    task = asyncio.ensure_future(work)
    while not task.done():
        if disk.is_dead:
            task.cancel()
            return None
        await asyncio.sleep(0)
    try:
        return task.result()
    except StorageError:
        return None


def play_log(scenario: Scenario) -> bool:
    """False: the life was over before the fault. Raises AssertionError when a promise was broken."""
    disk = scenario.disk(FaultDisk(scenario.seed) if scenario.fresh else made_disk(scenario.seed))
    load = Load(scenario.seed)

    async def live() -> None:
        logs = await until_dead(disk, open_logs(disk))
        if logs is not None:
            await load.run(logs, disk, ROUNDS)
            abandon(logs)

    run(live())
    left = _crash_recoveries(scenario, disk, lambda heir: open_logs(heir))
    first = run(recover_and_check(left, load))
    # What was visible after the recovery is durable: the power goes, and the second one finds the same.
    again = left.after_power_loss(scenario.seed + 1)
    assert run(recover_and_check(again, load)) == first
    run(append_more(again, load))
    return disk.is_dead or disk.has_failed


def _crash_recoveries(scenario: Scenario, disk: FaultDisk, recover: Callable[[FaultDisk], Awaitable[Any]]) -> FaultDisk:
    left = scenario.remains(disk, scenario.seed)
    for number, die_at in enumerate(scenario.crashes):
        left._die_at = die_at

        async def try_recovery(heir: FaultDisk = left) -> None:
            logs = await until_dead(heir, recover(heir))
            if hasattr(logs, "failed"):
                abandon(logs)

        run(try_recovery())
        left = scenario.remains(left, scenario.seed + 100 + number)
    return left


def play_metadata(scenario: Scenario) -> bool:
    """The metadata log: each acknowledged entry once and in order, over snapshots, faults and crashes in recovery."""
    disk = scenario.disk(FaultDisk(scenario.seed))
    tried: list[bytes] = []
    acknowledged: list[bytes] = []

    async def live() -> None:
        log = MetadataLog(disk, "data/metadata")
        if await until_dead(disk, log.replay()) is None:
            return
        chance = random.Random(scenario.seed)
        for number in range(120):
            if chance.random() < 0.1:
                await until_dead(disk, log.snapshot(b"\n".join(acknowledged)))
            entry = b"%d " % number + b"x" * chance.choice((0, 10, 5000))
            tried.append(entry)
            if await until_dead(disk, log.append(entry)) is not None:
                acknowledged.append(entry)
            elif disk.is_dead or log._failed is not None:
                return
            else:
                tried.pop()

    run(live())
    left = _crash_recoveries(scenario, disk, lambda heir: MetadataLog(heir, "data/metadata").replay())
    first = run(entries_of(left))
    assert first[: len(acknowledged)] == acknowledged, "an acknowledged entry is gone"
    assert first == tried[: len(first)], "an entry out of order"
    again = left.after_power_loss(scenario.seed + 1)
    assert run(entries_of(again)) == first
    return disk.is_dead or disk.has_failed


async def entries_of(disk: FaultDisk) -> list[bytes]:
    snapshot, records = await MetadataLog(disk, "data/metadata").replay()
    return (snapshot.split(b"\n") if snapshot else []) + records


async def _memory_life(disk: FaultDisk, load: Load) -> None:
    logs = await open_logs(disk, Durability.MEMORY)
    for _ in range(3):
        await load.run(logs, disk, 1)
    abandon(logs)


def play_control(seed: int) -> bool:
    """A life under `memory`, then a power loss: True when it lost something, as it must now and then."""
    disk = made_disk(seed).after_kill(seed)
    load = Load(seed)
    run(_memory_life(disk, load))
    try:
        run(recover_and_check(disk.after_power_loss(seed), load))
    except AssertionError:
        return True
    return False
