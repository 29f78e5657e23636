"""Retention of a partition: what is sealed, what is due, what waits for consumers, and what polls see of it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.storage.retention import NEVER, due_times
from shardserver.storage.segment import BLOCK_BYTES, Segment
from shardserver.storage.settings import Durability, RetentionSettings
from shardserver.storage.shard_log import ShardLog
from tests.fault_disk import FaultDisk
from tests.storage.retention_world import (
    DAY_US,
    HOUR_US,
    LARGE,
    SEGMENT_BYTES,
    MovedClock,
    append,
    commit,
    open_logs,
    read_offsets,
)

CONSUMER, GROUP = 1, 2


# Size


def test_a_partition_keeps_its_limit_and_its_active_segment() -> None:
    async def run() -> None:
        logs = await open_logs(FaultDisk(2), each=2 * SEGMENT_BYTES)
        await append(logs, 1, 30)
        await append(logs, 2, 2)
        assert await logs.retention.look() > 0
        sealed = logs.partition(1).segments[:-1]
        assert 0 < sum(one.data_bytes for one in sealed) <= 2 * SEGMENT_BYTES
        assert logs.partition(2).first_offset == 0
        assert await logs.retention.look() == 0
        await logs.close()

    asyncio.run(run())


def test_without_a_limit_nothing_goes() -> None:
    async def run() -> None:
        logs = await open_logs(FaultDisk(3))
        await append(logs, 1, 30)
        assert await logs.retention.look() == 0 and logs.partition(1).first_offset == 0
        await logs.close()

    asyncio.run(run())


# When a segment is due


def made_segments(sizes: list[int], gaps: list[int]) -> list[Segment]:
    """As many sealed ones as sizes, and an active one; gaps: from one newest timestamp to the next."""
    segments = [Segment(f"{place}", place, end=BLOCK_BYTES + size) for place, size in enumerate([*sizes, 0])]
    for place, gap in enumerate(gaps):
        segments[place + 1].previous_timestamp = segments[place].previous_timestamp + gap
    return segments


def naive_due(segments: list[Segment], place: int, expiry: int | None, limit: int | None) -> int:
    moments = [NEVER]
    if expiry is not None:
        moments.append(segments[place + 1].previous_timestamp + expiry)
    for end in range(place, len(segments) - 1):
        if limit is not None and sum(one.data_bytes for one in segments[place : end + 1]) > limit:
            moments.append(segments[end + 1].previous_timestamp)
    return min(moments)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8),
    st.none() | st.integers(1, 60),
    st.none() | st.integers(0, 120),
)
def test_a_segment_is_due_by_its_age_or_when_those_behind_it_filled_the_limit(
    sealed: list[tuple[int, int]], expiry: int | None, limit: int | None
) -> None:
    segments = made_segments([size for size, _ in sealed], [gap for _, gap in sealed])
    due = due_times(segments, expiry, limit)
    assert due == [naive_due(segments, place, expiry, limit) for place in range(len(sealed))]
    assert due == sorted(due)  # oldest first is the order of their due times


# Age


def test_a_sealed_segment_goes_when_its_newest_message_has_expired_and_not_before() -> None:
    async def run() -> None:
        clock = MovedClock()
        logs = await open_logs(FaultDisk(4), clock, expiry_us=DAY_US)
        await append(logs, 1, 11)  # two to a segment: the last one has an old and a young message
        old_end = logs.partition(1).segments[-1].base_offset
        clock.now_us += HOUR_US - 1000
        await append(logs, 1, 10)
        young = {one.base_offset for one in logs.partition(1).segments if one.base_offset > old_end}
        assert young and old_end > 0
        clock.now_us += DAY_US - HOUR_US - 10_000
        assert await logs.retention.look() == 0
        clock.now_us += 20_000
        assert await logs.retention.look() > 0
        assert logs.partition(1).first_offset == old_end
        assert young <= {one.base_offset for one in logs.partition(1).segments}
        assert await read_offsets(logs, 1, 0) == list(range(old_end, 21))
        await logs.close()

    asyncio.run(run())


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("size", [LARGE, 10], ids=["in a segment", "in the journal only"])
def test_an_idle_partition_is_sealed_and_expires_and_its_offsets_go_on(size: int, durability: Durability) -> None:
    async def run() -> None:
        clock, disk = MovedClock(), FaultDisk(5)
        logs = await open_logs(disk, clock, expiry_us=DAY_US, durability=durability)
        await append(logs, 1, 2, size)
        newest_us = logs.partition(1).last_timestamp
        clock.now_us += HOUR_US - 10_000
        await logs.retention.look()
        assert len(logs.partition(1).segments) < 2
        clock.now_us += 20_000
        assert await logs.retention.look() == 0
        assert [one.base_offset for one in logs.partition(1).segments] == [0, 2]
        assert await logs.retention.look() == 0 and logs.retention.statistics.rolled_segments == 1
        assert await read_offsets(logs, 1, 0) == [0, 1]
        clock.now_us += DAY_US
        assert await logs.retention.look() == 1
        log = logs.partition(1)
        assert (log.first_offset, log.high_watermark, log.message_count, log.is_empty) == (2, 2, 0, True)
        assert await read_offsets(logs, 1, 0) == []
        await logs.close()
        logs = await open_logs(disk, clock, expiry_us=DAY_US, durability=durability)
        assert logs.partition(1).last_timestamp >= newest_us
        await append(logs, 1, 1, size)
        assert await read_offsets(logs, 1, 0) == [2]
        await logs.close()

    asyncio.run(run())


def test_an_expiry_below_the_age_of_a_roll_rolls_earlier() -> None:
    async def run() -> None:
        clock = MovedClock()
        logs = await open_logs(FaultDisk(5), clock, expiry_us=HOUR_US // 60)
        await append(logs, 1, 1)
        clock.now_us += HOUR_US // 60 - 1000
        assert await logs.retention.look() == 0
        clock.now_us += 2000
        assert await logs.retention.look() == 1 and logs.partition(1).is_empty
        await logs.close()

    asyncio.run(run())


def test_without_expiry_nothing_is_rolled() -> None:
    async def run() -> None:
        clock = MovedClock()
        logs = await open_logs(FaultDisk(5), clock, each=SEGMENT_BYTES)
        await append(logs, 1, 1)
        clock.now_us += 100 * DAY_US
        assert await logs.retention.look() == 0 and len(logs.partition(1).segments) == 1
        await logs.close()

    asyncio.run(run())


def test_the_age_of_an_active_segment_is_known_after_a_restart() -> None:
    async def run() -> None:
        clock, disk = MovedClock(), FaultDisk(6)
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        await append(logs, 1, 1)
        await logs.close()
        clock.now_us += HOUR_US - 10_000
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        await append(logs, 1, 1)  # young
        await logs.retention.look()
        assert len(logs.partition(1).segments) == 1
        clock.now_us += 20_000
        await logs.retention.look()
        assert len(logs.partition(1).segments) == 2
        await logs.close()

    asyncio.run(run())


def test_the_age_of_sealed_segments_is_known_after_a_restart_without_reading_them() -> None:
    async def run() -> None:
        clock, disk = MovedClock(), FaultDisk(7)
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        await append(logs, 1, 30)
        bases = [one.base_offset for one in logs.partition(1).segments]
        await logs.close()
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        clock.now_us += DAY_US + HOUR_US
        before = disk.operations
        disk.unreadable = ".log"  # but for the active one, whose first batch tells its age
        assert await logs.retention.look() == 0
        disk.unreadable = f"{bases[0]:020d}.log"
        assert await logs.retention.look() >= len(bases) - 1
        assert disk.operations > before and logs.partition(1).first_offset >= bases[-1]
        await logs.close()

    asyncio.run(run())


# Consumers that lag


async def with_lagging_consumer(kind: int, **limits: int) -> tuple[ShardLog, MovedClock]:
    """The consumer has read the first message only; everything was appended within a few microseconds."""
    clock = MovedClock()
    logs = await open_logs(FaultDisk(8), clock, **limits)
    await append(logs, 1, 30)
    await commit(logs, 1, kind, 7, 0)
    await commit(logs, 1, CONSUMER, 8, 29)
    return logs, clock


@pytest.mark.parametrize("kind", [CONSUMER, GROUP])
@pytest.mark.parametrize("limits", [{"each": SEGMENT_BYTES}, {"expiry_us": DAY_US}], ids=["size", "age"])
def test_a_due_segment_waits_for_a_lagging_consumer_and_is_let_go_in_the_end(
    kind: int, limits: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        logs, clock = await with_lagging_consumer(kind, **limits)
        clock.now_us += limits.get("expiry_us", 0) + 7 * DAY_US - HOUR_US
        assert await logs.retention.look() == 0 and logs.partition(1).first_offset == 0
        clock.now_us += 2 * HOUR_US
        with caplog.at_level(logging.WARNING):
            deleted = await logs.retention.look()
        assert deleted > 0 and logs.partition(1).first_offset > 1
        assert logs.retention.statistics.unread_segments == deleted == logs.retention.statistics.deleted_segments
        [event] = [record for record in caplog.records if record.message == "unread_segments_deleted"]
        assert event.fields["partition"] == 1 and event.fields["lowest_committed"] == 0
        await logs.close()

    asyncio.run(run())


def test_what_all_consumers_have_passed_goes_at_once() -> None:
    async def run() -> None:
        logs, clock = await with_lagging_consumer(GROUP, expiry_us=DAY_US)
        second = logs.partition(1).segments[1].base_offset
        clock.now_us += DAY_US + HOUR_US
        await commit(logs, 1, GROUP, 7, second - 2)
        assert await logs.retention.look() == 0
        await commit(logs, 1, GROUP, 7, second - 1)
        assert await logs.retention.look() == 1 and logs.partition(1).first_offset == second
        assert logs.retention.statistics.unread_segments == 0
        await logs.close()

    asyncio.run(run())


@pytest.mark.parametrize("wait_us", [None, DAY_US])
def test_the_wait_can_be_off_or_shorter(wait_us: int | None) -> None:
    async def run() -> None:
        logs, clock = await with_lagging_consumer(CONSUMER, expiry_us=DAY_US)
        logs.retention.settings = RetentionSettings(wait_us=wait_us)
        clock.now_us += DAY_US + (wait_us or 0) + HOUR_US
        assert await logs.retention.look() > 0
        await logs.close()

    asyncio.run(run())


def test_deleting_segments_by_command_has_the_same_barrier_from_their_newest_message_on() -> None:
    async def run() -> None:
        logs, clock = await with_lagging_consumer(CONSUMER)
        partition, retention = logs.partition(1), logs.retention
        bases = [one.base_offset for one in partition.segments]
        assert retention.cut_offset(partition, 2) == 0
        await commit(logs, 1, CONSUMER, 7, bases[1] - 1)
        assert retention.cut_offset(partition, 2) == bases[1]
        clock.now_us += 8 * DAY_US
        assert retention.cut_offset(partition, 2) == bases[2]
        assert retention.cut_offset(partition, 100) == bases[-1]  # never the active one
        assert await retention.delete(partition, bases[2]) == 2
        assert await retention.delete(partition, bases[2]) == 0
        assert partition.first_offset == bases[2] and retention.statistics.unread_segments == 1
        await logs.close()

    asyncio.run(run())


def test_a_committed_offset_below_the_oldest_stays_and_its_consumer_starts_at_the_oldest() -> None:
    async def run() -> None:
        clock, disk = MovedClock(), FaultDisk(9)
        logs = await open_logs(disk, clock)
        await append(logs, 1, 30)
        await commit(logs, 1, CONSUMER, 7, 1)
        first = logs.partition(1).segments[2].base_offset
        await logs.retention.delete(logs.partition(1), first)
        for _ in range(2):
            assert logs.offsets.get(1, CONSUMER, 7) == 1
            assert (await read_offsets(logs, 1, 2))[0] == first
            await commit(logs, 1, CONSUMER, 9, 0)  # one below it can be set
            await logs.close()
            logs = await open_logs(disk, clock)
        await logs.close()

    asyncio.run(run())


# Others at the same time


def test_a_poll_in_flight_on_a_segment_that_is_deleted_finishes() -> None:
    """Whenever the deletion begins: the answer is of consecutive messages up to where it ends, from the oldest on."""

    async def run(turns: int) -> bool:
        disk = FaultDisk(turns)
        logs = await open_logs(disk)
        await append(logs, 1, 14)
        await logs.close()
        logs = await open_logs(disk)
        partition = logs.partition(1)
        first = partition.segments[2].base_offset
        poll = asyncio.ensure_future(partition.reader.read(0, 12, 1 << 20))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = poll.done()
        await logs.retention.delete(partition, first)
        result = await poll
        assert result.count > 0 and result.last_offset >= min(11, first)
        assert await read_offsets(logs, 1, 0) == list(range(first, 14))
        await logs.close()
        return was_done

    turns = 0
    while not asyncio.run(run(turns)):
        turns += 3  # each is a life of its own
    assert turns > 5


class LateDisk(FaultDisk):
    """Reads of segments wait until the test lets them go."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.may_read, self.waiting = asyncio.Event(), 0
        self.may_read.set()

    def read(self, file, position, buffer):  # type: ignore[no-untyped-def]
        return asyncio.ensure_future(self._read_late(file, position, buffer))

    async def _read_late(self, file, position, buffer):  # type: ignore[no-untyped-def]
        if file.path.endswith(".log"):
            self.waiting += 1
            await self.may_read.wait()
        return await super().read(file, position, buffer)


def test_bytes_that_went_while_a_poll_read_them_are_not_damaged_ones(caplog: pytest.LogCaptureFixture) -> None:
    """A descriptor that was given up for others is closed after its last read; nobody waits for that."""

    async def run() -> None:
        disk = LateDisk(1)
        logs = await open_logs(disk)
        await append(logs, 1, 14)
        partition = logs.partition(1)
        disk.may_read.clear()
        poll = asyncio.ensure_future(partition.reader.read(0, 12, 1 << 20))
        while not disk.waiting:
            await asyncio.sleep(0)
        first = partition.segments[2].base_offset
        await logs.retention.delete(partition, first)
        disk.may_read.set()
        result = await poll
        assert result.last_offset == 13 and result.count == 14 - first
        await logs.close()

    asyncio.run(run())
    assert "batch_damaged" not in caplog.text


def test_a_partition_whose_disk_fails_keeps_no_other_one_from_its_retention(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        clock, disk = MovedClock(), FaultDisk(10)
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        await append(logs, 2, 10)
        await append(logs, 1, 10)
        await logs.close()
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        disk.unreadable = f"{1:016x}"
        clock.now_us += 2 * DAY_US
        assert await logs.retention.look() > 0
        assert logs.partition(1).first_offset == 0 < logs.partition(2).first_offset
        assert [record.fields["partition"] for record in caplog.records if record.message == "retention_failed"] == [1]
        await logs.close()

    asyncio.run(run())


def test_a_partition_that_is_deleted_during_a_roll_leaves_no_file_behind() -> None:
    async def run(turns: int) -> bool:
        clock, disk = MovedClock(), FaultDisk(turns)
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        await append(logs, 1, 3, size=10)
        clock.now_us += 2 * HOUR_US
        look = asyncio.ensure_future(logs.retention.look())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = look.done()
        logs.forget_partition(1)
        await logs.remove_files(1)
        await look
        await logs.wait_idle()
        assert not [path for path in disk.files if f"partitions/{1:016x}" in path]
        await logs.close()
        return was_done

    turns = 0
    while not asyncio.run(run(turns)):
        turns += 1
    assert turns > 10


def test_a_partition_that_leaves_during_a_roll_leaves_with_all_that_was_sealed() -> None:
    async def run(turns: int) -> bool:
        clock, disk = MovedClock(), FaultDisk(turns)
        logs = await open_logs(disk, clock, expiry_us=DAY_US)
        await append(logs, 1, 3, size=10)
        clock.now_us += 2 * HOUR_US
        look = asyncio.ensure_future(logs.retention.look())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = look.done()
        state = await logs.moves.release_partition(1)
        await look
        assert state.next_offset == 3 and state.segment_base in (0, 3)
        await logs.moves.resume_partition(1)
        assert await read_offsets(logs, 1, 0) == [0, 1, 2]
        await logs.close()
        return was_done

    turns = 0
    while not asyncio.run(run(turns)):
        turns += 1
    assert turns > 10
