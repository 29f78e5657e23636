"""Two shards of one data directory, metadata that says who owns what, a load that follows it, and the oracle.

Metadata is a value here: an event is synced between two operations of the disk, as storage rule 17 has it.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import Future
from collections.abc import Sequence
from dataclasses import dataclass, field

from shardserver.errors import NotOwnerError, ShardServerError, StorageError
from shardserver.storage.handover import ReleasedPartition
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults
from tests.batches import make_batch
from tests.fault_disk import FaultDisk, FaultFile, Node
from tests.storage.log_world import SETTINGS, abandon, read_numbers, ticking_clock

CONSUMERS = (7, 8, 9)


class LockingDisk(FaultDisk):
    """Also models flock: an open waits until whoever has the file open with a lock has closed it."""

    def __init__(self, seed: int, **more: object) -> None:
        super().__init__(seed, **more)  # type: ignore[arg-type]
        self._holders: dict[int, FaultFile] = {}

    @classmethod
    def heir_of(cls, other: FaultDisk, seed: int) -> LockingDisk:
        """As other, all locks free."""
        disk = cls(seed, capacity_bytes=other.capacity_bytes)
        disk.files, disk.durable_files = other.files, other.durable_files
        disk._renamed, disk._ghosts = other._renamed, other._ghosts
        return disk

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future:
        if not lock or create:
            return super().open(path, create=create, direct=direct, lock=lock)
        return asyncio.ensure_future(self._open_locked(path))

    async def _open_locked(self, path: str) -> FaultFile:
        file = await super().open(path)
        for _ in range(20_000):
            if id(file.node) not in self._holders:
                self._holders[id(file.node)] = file
                return file
            await asyncio.sleep(0)
        raise AssertionError(f"{path} is never closed")

    def is_held(self, node: Node) -> bool:
        return id(node) in self._holders

    def close(self, file: FaultFile) -> Future:
        if self._holders.get(id(file.node)) is file:
            del self._holders[id(file.node)]
        return super().close(file)


@dataclass
class Owner:
    shard: int
    term: int


@dataclass
class World:
    """What outlives processes: the disk, metadata, and what clients know."""

    disk: LockingDisk
    durability: Durability = Durability.FSYNC
    uids: Sequence[int] = (1, 2)
    settings: LogSettings = SETTINGS
    directory: str = "data"
    owners: dict[int, Owner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.owners = self.owners or {uid: Owner(0, 1) for uid in self.uids}

    def identity(self, uid: int, term: int) -> PartitionIdentity:
        return PartitionIdentity(uid, term, uid - 1, segment_bytes=48 * 1024, durability=self.durability)

    async def open(self, shard: int, faults: SyncFaults | None = None) -> ShardLog:
        mine = [self.identity(uid, owner.term) for uid, owner in self.owners.items() if owner.shard == shard]
        source = RecoveryInput(shard, max(self.uids) + 1, mine, faults=faults or SyncFaults())
        return await recover_shard(
            self.disk, self.directory, self.settings, source, ticking_clock(), lambda error: None
        )

    async def start(self, shards: Sequence[int] = (0, 1)) -> Shards:
        """Both know of each other's failed syncs, as logs of one process do: here one drops blocks of all files."""
        faults = SyncFaults()
        return Shards(self, {shard: await self.open(shard, faults) for shard in shards})

    def crash(self, seed: int, *, power_loss: bool) -> None:
        left = self.disk.after_power_loss(seed) if power_loss else self.disk.after_kill(seed)
        self.disk = LockingDisk.heir_of(left, seed)


@dataclass
class Shards:
    """The processes of one life, all on one loop."""

    world: World
    logs: dict[int, ShardLog]

    def owner(self, uid: int) -> ShardLog:
        return self.logs[self.world.owners[uid].shard]

    async def move(self, uids: Sequence[int], target: int, *, give_up: str = "") -> None:
        """All steps of a move of partitions with one owner. give_up: after `release` or `adopt`."""
        world, destination = self.world, self.logs[target]
        source = self.owner(uids[0])
        states = await source.moves.release_partitions(uids)
        if give_up != "release":
            await self._adopt(source, destination, states, give_up)
        if give_up:
            await resume(source, uids)
            return
        for uid in uids:
            world.owners[uid] = Owner(target, world.owners[uid].term + 1)
            destination.moves.activate_partition(uid)
            source.forget_partition(uid)

    async def _adopt(
        self, source: ShardLog, destination: ShardLog, states: list[ReleasedPartition], give_up: str
    ) -> None:
        arrivals = [(self.world.identity(one.uid, self.world.owners[one.uid].term + 1), one) for one in states]
        try:
            await destination.moves.adopt_partitions(arrivals)
        except StorageError:
            await resume(source, [one.uid for one in states])
            raise
        for one in states if give_up else ():
            destination.forget_partition(one.uid)

    def abandon(self) -> None:
        for one in self.logs.values():
            abandon(one)

    async def numbers(self) -> dict[int, list[int]]:
        return {uid: await read_numbers(self.owner(uid), uid) for uid in self.world.uids}

    def offsets(self) -> dict[tuple[int, int], int | None]:
        return {
            (uid, consumer): self.owner(uid).offsets.get(uid, 1, consumer)
            for uid in self.world.uids
            for consumer in CONSUMERS
        }

    async def close(self) -> None:
        for one in self.logs.values():
            await one.close()


async def resume(logs: ShardLog, uids: Sequence[int]) -> None:
    """Again while the disk fails once."""
    try:
        await logs.moves.resume_partitions(uids)
    except StorageError:
        await logs.moves.resume_partitions(uids)


class MoveLoad:
    """Appends, and offsets that are set forwards and backwards and deleted, at whoever owns the partition.

    tried: what each consumer's offset was set to, in order, None for a deletion. kept: place of the newest that was
    acknowledged.
    """

    def __init__(self, seed: int, world: World) -> None:
        self._chance, self._world = random.Random(seed), world
        self._number = 0
        self.acknowledged: dict[int, list[int]] = {uid: [] for uid in world.uids}
        self.not_taken: set[int] = set()
        self.tried: dict[tuple[int, int], list[int | None]] = {}
        self.kept: dict[tuple[int, int], int] = {}

    def append(self, shards: Shards, uid: int, size: int = 0) -> Future[int | ShardServerError]:
        self._number += 1
        number = self._number
        outcome: Future[int | ShardServerError] = asyncio.get_running_loop().create_future()

        def done(result: int | ShardServerError) -> None:
            if isinstance(result, int):
                self.acknowledged[uid].append(number)
            elif isinstance(result, NotOwnerError):
                self.not_taken.add(number)
            outcome.set_result(result)

        shards.owner(uid).partition(uid).append(make_batch([b"%d " % number + b"x" * size]), 1, done)
        return outcome

    def commit(self, shards: Shards, uid: int, consumer: int, offset: int | None) -> Future[ShardServerError | None]:
        """Set, or with None delete."""
        logs, key = shards.owner(uid), (uid, consumer)
        outcome: Future[ShardServerError | None] = asyncio.get_running_loop().create_future()
        tried = self.tried.setdefault(key, [None])
        place = len(tried)

        def done(error: ShardServerError | None) -> None:
            if error is None:
                self.kept[key] = max(place, self.kept.get(key, 0))
            outcome.set_result(error)

        try:
            if offset is None:
                logs.offsets.delete(logs.partition(uid), 1, consumer, done)
            else:
                logs.offsets.store(logs.partition(uid), 1, consumer, offset, done)
        except ShardServerError as error:
            outcome.set_result(error)
        else:
            tried.append(offset)
        return outcome

    def some(self, shards: Shards) -> list[Future]:
        """A few requests at once, drawn at random."""
        waiting: list[Future] = []
        for _ in range(self._chance.randrange(1, 5)):
            uid = self._chance.choice(list(self._world.uids))
            waiting.append(self.append(shards, uid, self._chance.choice((10, 100, 3000, 9000))))
        end = shards.owner(uid).partition(uid).high_watermark
        if end and self._chance.random() < 0.6:
            offset = self._chance.choice((None, self._chance.randrange(end)))
            waiting.append(self.commit(shards, uid, self._chance.choice(CONSUMERS), offset))
        return waiting

    def check(self, numbers: dict[int, list[int]], offsets: dict[tuple[int, int], int | None]) -> None:
        for uid, found in numbers.items():
            assert found == sorted(set(found)), f"partition {uid}: doubled or out of order: {found}"
            lost = set(self.acknowledged[uid]) - set(found)
            assert not lost, f"partition {uid}: lost {sorted(lost)}"
            revived = self.not_taken & set(found)
            assert not revived, f"partition {uid}: refused, and there: {sorted(revived)}"
        for key, tried in self.tried.items():
            assert offsets[key] in tried[self.kept.get(key, 0) :], (
                f"{key}: {offsets[key]}, tried {tried}, kept {self.kept}"
            )
            assert offsets[key] is None or offsets[key] < max(1, len(numbers[key[0]])), f"{key}: beyond the end"


async def check_recovered(
    world: World, load: MoveLoad
) -> tuple[dict[int, list[int]], dict[tuple[int, int], int | None]]:
    """Recover all shards and compare; gives what was found."""
    shards = await world.start()
    for uid in world.uids:
        assert shards.owner(uid).partition(uid).fenced is None, shards.owner(uid).partition(uid).fenced
    found = await shards.numbers(), shards.offsets()
    load.check(*found)
    shards.abandon()
    return found
