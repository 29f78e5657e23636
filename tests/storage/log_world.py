"""A shard's logs on the fault Disk, a load with numbered messages, and the oracle after a crash."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from shardserver.errors import ShardServerError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch, payloads_of
from tests.fault_disk import FaultDisk

UIDS = (1, 2)
SEGMENT_BYTES = (48 << 10, 256 << 10)  # one rolls again and again; the other seldom, so more of its runs are direct
MOST_AT_A_TIME = 8
SETTINGS = LogSettings(
    journal_file_bytes=160 * 1024,
    journal_files=4,
    max_write_bytes=32 * 1024,
    direct_bytes=12_000,
    flush_run_bytes=24_000,
    whole_bytes=3000,
    tail_bytes=30_000,
    read_bytes=8192,
    linger_s=0.01,
    retry_s=0.001,
)


def ticking_clock():
    moment = 0

    def tick() -> int:
        nonlocal moment
        moment += 1
        return moment

    return tick


async def open_logs(
    disk: FaultDisk,
    durability: Durability = Durability.FSYNC,
    *,
    answers_are_known: bool = True,
    settings: LogSettings = SETTINGS,
    **more: object,
) -> ShardLog:
    identities = [
        PartitionIdentity(uid, 1, uid - 1, segment_bytes=size, durability=durability, **more)
        for uid, size in zip(UIDS, SEGMENT_BYTES, strict=True)
    ]
    source = RecoveryInput(0, max(UIDS) + 1, identities, answers_are_known=answers_are_known)
    return await recover_shard(disk, "data", settings, source, ticking_clock(), lambda error: None)


def made_disk(seed: int) -> FaultDisk:
    """A shard that was created and stopped."""
    disk = FaultDisk(seed)

    async def create() -> None:
        await (await open_logs(disk)).close()

    asyncio.run(create())
    return disk


def abandon(logs: ShardLog) -> None:
    """The process is dead: what its tasks would still do must not start new ones."""
    logs.failed = StorageError("the modelled process is dead")


class Load:
    """Appends of random sizes; each message begins with its number, rising per partition."""

    def __init__(self, seed: int, on_acknowledged: Callable[[bytes], None] = lambda record: None) -> None:
        """on_acknowledged: gets, at each acknowledgement, bytes that a file must hold for it."""
        self._chance = random.Random(seed)
        self._on_acknowledged = on_acknowledged
        self.number = 0
        self.acknowledged: dict[int, list[int]] = {uid: [] for uid in UIDS}
        self.refused = 0
        self.commits: dict[int, list[int]] = {uid: [] for uid in UIDS}  # tried, in order
        self.committed: dict[int, int] = {}  # place in `commits` of the newest acknowledged one

    async def run(self, logs: ShardLog, disk: FaultDisk, rounds: int) -> None:
        """Some appends at a time, until done or dead."""
        for _ in range(rounds):
            waiting = [self._append(logs) for _ in range(self._chance.randrange(1, 6))]
            if self._chance.random() < 0.3:
                waiting += [self._commit(logs)]
            while not all(one.done() for one in waiting):
                if disk.is_dead or logs.failed is not None:
                    return
                if len(waiting) < MOST_AT_A_TIME and self._chance.random() < 0.1:
                    waiting.append(self._append(logs))  # behind a run or a journal write in flight
                await asyncio.sleep(0)

    def _append(self, logs: ShardLog) -> asyncio.Future[None]:
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        uid = self._chance.choice(UIDS)
        numbers = []
        for _ in range(self._chance.choice((1, 1, 3))):
            self.number += 1
            numbers.append(self.number)
        size = self._chance.choice((10, 100, 3700, 9000))  # blocks of 3700 have room for their padding
        batch = make_batch([f"{number} ".encode() + b"x" * size for number in numbers])

        def done(result: int | ShardServerError) -> None:
            if isinstance(result, int):
                self.acknowledged[uid] += numbers
                entry = log.tail.at(result)
                assert entry is not None
                self._on_acknowledged(bytes(entry.data))
            else:
                self.refused += 1
            outcome.set_result(None)

        log = logs.partition(uid)
        if self._chance.random() < 0.5:  # by a known route
            log.send_bytes(logs.resources.memory, batch, len(numbers), done)
        else:
            log.append(logs.copy_batch(batch), len(numbers), done)
        return outcome

    def _commit(self, logs: ShardLog) -> asyncio.Future[None]:
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        uid = self._chance.choice(UIDS)
        if logs.partition(uid).is_empty:
            outcome.set_result(None)
            return outcome
        tried = self.commits[uid]
        tried.append(self._chance.randrange(logs.partition(uid).high_watermark))
        place = len(tried) - 1

        def done(error: ShardServerError | None) -> None:
            if error is None:
                self.committed[uid] = max(place, self.committed.get(uid, -1))
                payload = fmt.encode_offset(1, 7, tried[place])
                self._on_acknowledged(fmt.encode_record_header(fmt.KIND_OFFSET, 0, 0, uid, 1, len(payload)) + payload)
            outcome.set_result(None)

        logs.offsets.store(logs.partition(uid), 1, 7, tried[-1], done)
        return outcome

    def check_commits(self, logs: ShardLog) -> None:
        """A committed offset is the newest acknowledged one or a later try, and never beyond the end."""
        for uid, place in self.committed.items():
            found = logs.offsets.get(uid, 1, 7)
            assert found in self.commits[uid][place:], f"partition {uid}: offset {found}, committed {self.commits[uid]}"
            assert found < logs.partition(uid).high_watermark


async def append(logs: ShardLog, uid: int, count: int = 1, number: int = 0, size: int = 0) -> int:
    """One batch of messages numbered from `number`; gives its base offset, once acknowledged."""
    outcome: asyncio.Future[int | ShardServerError] = asyncio.get_running_loop().create_future()
    payloads = [b"%d " % one + b"x" * size for one in range(number, number + count)]
    logs.partition(uid).append(logs.copy_batch(make_batch(payloads)), count, outcome.set_result)
    result = await outcome
    if not isinstance(result, int):
        raise result
    return result


async def read_numbers(logs: ShardLog, uid: int) -> list[int]:
    """All messages of a partition from the first to the high watermark, by reads of a few at a time."""
    log, found = logs.partition(uid), []
    offset = log.first_offset
    while offset < log.high_watermark:
        result = await log.reader.read(offset, 7, 20_000)
        part = payloads_of(b"".join(result.buffers))
        assert len(part) == result.count > 0
        assert result.last_offset == offset + result.count - 1
        found += [int(payload.split(b" ")[0]) for payload in part]
        offset = result.last_offset + 1
    return found


def check_oracle(load: Load, found: dict[int, list[int]]) -> None:
    """Each acknowledged message exactly once, in order; nothing twice."""
    for uid, numbers in found.items():
        assert numbers == sorted(set(numbers)), f"partition {uid}: doubled or out of order: {numbers}"
        lost = set(load.acknowledged[uid]) - set(numbers)
        assert not lost, f"partition {uid}: lost {sorted(lost)}"


async def recover_and_check(disk: FaultDisk, load: Load) -> dict[int, list[int]]:
    """Recover, compare, and see that the logs take new appends."""
    logs = await open_logs(disk)
    found = {uid: await read_numbers(logs, uid) for uid in UIDS}
    check_oracle(load, found)
    load.check_commits(logs)
    abandon(logs)
    return found


async def append_more(disk: FaultDisk, load: Load) -> None:
    logs = await open_logs(disk)
    before = sum(map(len, load.acknowledged.values()))
    await load.run(logs, disk, 3)
    assert sum(map(len, load.acknowledged.values())) > before
    check_oracle(load, {uid: await read_numbers(logs, uid) for uid in UIDS})
    load.check_commits(logs)
    await logs.close()
