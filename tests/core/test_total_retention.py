"""The limit of the whole server: the oldest sealed segment of all shards goes first, and each shard deletes its own."""

from __future__ import annotations

import asyncio

from shardserver.core.total_retention import enforce_total
from shardserver.memory.board import BOARD_BYTES, Board
from tests.fault_disk import FaultDisk
from tests.storage.log_world import read_numbers
from tests.storage.retention_world import SEGMENT_BYTES, append, open_logs


def make_board() -> Board:
    return Board(memoryview(bytearray(BOARD_BYTES)))


def test_the_oldest_sealed_segments_go_first_whosever_they_are() -> None:
    async def run() -> None:
        logs, own = await open_logs(FaultDisk(1)), make_board()
        await append(logs, 1, 20)  # older
        await append(logs, 2, 20)
        before = len(logs.partition(2).segments)
        assert await enforce_total(6 * SEGMENT_BYTES, logs, own, [own]) > 0
        first, second = logs.partition(1), logs.partition(2)
        assert own.segments_bytes == logs.segments_bytes <= 6 * SEGMENT_BYTES
        assert len(first.segments) == 1 or len(second.segments) == before, "a younger segment went before an older one"
        for log in (first, second):
            assert await read_numbers(logs, log.uid) == list(range(log.first_offset, 20))
        assert await enforce_total(6 * SEGMENT_BYTES, logs, own, [own]) == 0
        await logs.close()

    asyncio.run(run())


def test_a_shard_waits_for_the_one_that_has_an_older_segment() -> None:
    async def run() -> None:
        logs, own, other = await open_logs(FaultDisk(2)), make_board(), make_board()
        await append(logs, 1, 20)
        other.segments_bytes, other.oldest_timestamp = 10 * SEGMENT_BYTES, 1
        assert await enforce_total(6 * SEGMENT_BYTES, logs, own, [own, other]) == 0
        assert own.segments_bytes == logs.segments_bytes > 0
        other.oldest_timestamp = 1 << 62  # younger than all of ours: they go, down to the active segment
        assert await enforce_total(6 * SEGMENT_BYTES, logs, own, [own, other]) > 0
        assert len(logs.partition(1).segments) == 1
        await logs.close()

    asyncio.run(run())


def test_without_a_limit_nothing_goes() -> None:
    async def run() -> None:
        logs, own = await open_logs(FaultDisk(3)), make_board()
        await append(logs, 1, 30)
        assert await enforce_total(0, logs, own, [own]) == 0 and logs.partition(1).first_offset == 0
        await logs.close()

    asyncio.run(run())
