"""Sequential readers behind the tail: each byte is read about once, and the next read is under way."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from shardserver.storage.shard_log import ShardLog
from tests.batches import payloads_of
from tests.fault_disk import FaultDisk
from tests.storage.log_world import UIDS, Load, abandon, made_disk, open_logs, read_numbers

ROUNDS = 60


class CountingDisk(FaultDisk):
    """Counts the bytes that reads of segments ask for."""

    read_bytes = 0

    def read(self, file, position, buffer):
        self.read_bytes += len(buffer) if file.path.endswith(".log") else 0
        return super().read(file, position, buffer)


def stopped_with_data(seed: int) -> CountingDisk:
    disk = made_disk(seed).after_kill(seed)

    async def live() -> None:
        logs = await open_logs(disk)
        await Load(seed).run(logs, disk, ROUNDS)
        await logs.close()

    asyncio.run(live())
    counting = CountingDisk(seed)
    counting.files, counting.durable_files = disk.files, disk.durable_files
    return counting


async def poll(logs: ShardLog, uid: int, offset: int, count: int) -> list[int]:
    result = await logs.partition(uid).reader.read(offset, count, 20_000)
    return [int(payload.split(b" ")[0]) for payload in payloads_of(b"".join(result.buffers))]


def test_a_sequential_reader_reads_each_byte_about_once() -> None:
    disk = stopped_with_data(1)

    async def live() -> tuple[int, int]:
        logs = await open_logs(disk)
        await read_numbers(logs, 1)  # the indexes are loaded
        disk.read_bytes, data = 0, logs.partition(1).size_bytes
        offset = 0
        while offset < logs.partition(1).high_watermark:
            offset += len(await poll(logs, 1, offset, 1))
        abandon(logs)
        return disk.read_bytes, data

    read, data = asyncio.run(live())
    assert data < read < 2 * data


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(UIDS), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=40))
def test_readers_that_go_on_jump_and_share_a_place_get_what_a_whole_read_gives(
    steps: list[tuple[int, int, int]],
) -> None:
    disk = stopped_with_data(2)

    async def live() -> None:
        logs = await open_logs(disk)
        whole = {uid: await read_numbers(logs, uid) for uid in UIDS}
        places = [0, 0, 0, 5]
        for uid, reader, count in steps:
            offset = min(places[reader], len(whole[uid]))
            found = await poll(logs, uid, offset, count)
            assert found == whole[uid][offset : offset + len(found)]
            assert found or offset == len(whole[uid])
            places[reader] = offset + len(found)
        assert len(logs.resources.walks) <= 8
        abandon(logs)

    asyncio.run(live())
