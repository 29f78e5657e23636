"""Rule 10: ten thousand partitions on a disk at 1 % of its speed: their journal is freed, slowly, and no deadlock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from shardserver.errors import ShardServerError
from shardserver.storage import journal_growth
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch
from tests.core.simulated_loop import SimulatedLoop
from tests.fault_disk import FaultDisk, FaultFile
from tests.storage.log_world import abandon, ticking_clock

PARTITIONS, ROUNDS = 10_000, 3
# 1 % of 10,000 operations and of 1 GB a second.
OPERATION_S, BYTE_S = 0.01, 1e-7
# The ring has 512 bytes for each partition instead of 64 KiB: it comes round within the test, and what has to be padded
# and flushed for that is eight times what it holds.
RING_BYTES, TAIL_BYTES = 512 * PARTITIONS, 1 << 20
FILES = 4
SETTINGS = LogSettings(
    journal_file_bytes=RING_BYTES // FILES // 4096 * 4096,
    journal_files=FILES,
    max_write_bytes=256 * 1024,
    tail_bytes=TAIL_BYTES,
)
# A new directory, segment and run of each partition, one append each: what a round takes at worst, and a half more.
LONGEST_ROUND_S = 1.5 * PARTITIONS * 16 * OPERATION_S


class SlowDisk(FaultDisk):
    """One operation after the other, each as long as the device takes. Names are not what is looked at."""

    is_slow = False
    written_bytes = 0
    reuses = 0

    def _schedule(self) -> None:
        if self._due or not self.is_slow:
            super()._schedule()
            return
        self._due = True
        cost_s, self.written_bytes = OPERATION_S + self.written_bytes * BYTE_S, 0
        asyncio.get_running_loop().call_later(cost_s, self._complete_one)

    def write(self, file: FaultFile, position: int, buffers: Sequence[memoryview], **options: Any) -> asyncio.Future:
        self.written_bytes += sum(map(len, buffers))
        is_start = file.path.endswith(".journal") and position == 4096
        self.reuses += is_start and any(file.node.current[4096:8192])
        return super().write(file, position, buffers, **options)

    def sync_directory(self, path: str) -> asyncio.Future:
        return self._submit("sync directory", lambda: None)


async def append_to_all(logs: ShardLog, batch: bytes, answered: Callable[[int | ShardServerError], None]) -> None:
    left = PARTITIONS
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def one_is_answered(outcome: int | ShardServerError) -> None:
        nonlocal left
        answered(outcome)
        left -= 1
        if not left:
            done.set_result(None)

    for partition in logs.partitions:
        partition.append(logs.copy_batch(bytearray(batch)), 1, one_is_answered)
    await done


@pytest.mark.parametrize("grown", [1, 4])
def test_a_disk_at_one_percent_of_its_speed_answers_ten_thousand_partitions(
    monkeypatch: pytest.MonkeyPatch, grown: int
) -> None:
    """grown: so many times as large as it was made the ring gets, and so are appends; files are freed later then."""
    monkeypatch.setattr(journal_growth, "RING_BYTES_PER_PARTITION", 512 * grown)
    disk = SlowDisk(1)
    outcomes: list[int | ShardServerError] = []
    used_bytes: list[int] = []
    batch = bytes(make_batch([b"x" * (500 * grown - 400)]))

    async def life() -> None:
        identities = [PartitionIdentity(uid, 1, 0) for uid in range(1, PARTITIONS + 1)]
        source = RecoveryInput(0, PARTITIONS + 1, identities)
        logs = await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)
        disk.is_slow = True
        for _ in range(ROUNDS):
            async with asyncio.timeout(LONGEST_ROUND_S):
                await append_to_all(logs, batch, outcomes.append)
            used_bytes.append(logs.resources.memory.used_bytes)
        assert logs.journal.files >= FILES * grown
        abandon(logs)

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(life())
    assert disk.reuses > FILES * grown
    assert max(used_bytes) <= grown * RING_BYTES * 8 // 5 + TAIL_BYTES
    assert outcomes == [offset for offset in range(ROUNDS) for _ in range(PARTITIONS)]
