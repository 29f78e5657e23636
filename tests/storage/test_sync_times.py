"""The histogram of syncs, and that every synced write is in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shardserver.io_uring.threads import ThreadDisk
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage.sync_times import SyncTimes
from shardserver.storage.synced_write import SyncFaults, write_synced


@given(st.integers(0, 10**10))
def test_a_time_is_told_with_an_eighth_at_most_above_it(us: int) -> None:
    times = SyncTimes()
    times.note((us + 0.5) / 1e6)
    ((most, count),) = times.counts()
    assert count == 1 and us <= most <= us + us // 8


@given(st.lists(st.integers(0, 10**7), min_size=1))
def test_counts_ascend_and_leave_nothing_out(all_us: list[int]) -> None:
    times = SyncTimes()
    for us in all_us:
        times.note((us + 0.5) / 1e6)
    found = times.counts()
    assert [most for most, _ in found] == sorted({most for most, _ in found})
    for most, _ in found:
        assert sum(count for bound, count in found if bound <= most) == sum(us <= most for us in all_us)


def test_every_synced_write_is_counted(tmp_path: Path) -> None:
    async def write(count: int) -> list[tuple[int, int]]:
        disk, faults = ThreadDisk(1), SyncFaults()
        faults.times = SyncTimes()
        file = await disk.open(str(tmp_path / "file"), create=True)
        for _ in range(count):
            await write_synced(disk, faults, file, 0, [aligned_buffer(4096)])
        await disk.close(file)
        await disk.shut_down()
        return faults.times.counts()

    found = asyncio.run(write(3))
    assert sum(count for _, count in found) == 3 and found[0][0] > 0
