"""One flipped bit in a segment: only that batch is unreadable, with and without an index, now and after a restart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from shardserver.errors import CorruptionError
from shardserver.storage.index import decode_index, encode_index, index_path
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from tests.batches import make_batch, payloads_of
from tests.fault_disk import FaultDisk
from tests.storage.log_world import SETTINGS, ticking_clock

DIRECTORY = f"data/partitions/{1:016x}"
BATCHES, PER_BATCH, PAYLOAD = 60, 2, 1500
# What is hit: byte of the batch.
HIT = {"payload": 600, "message checksum": 256, "batch length": 32, "base offset": 8, "batch checksum": 40, "count": 48}

# docs/formats/index.md
FIRST_ENTRY, ENTRY_BYTES, TIME_IN_ENTRY = 40, 24, 16


async def open_log(disk: FaultDisk, settings: LogSettings) -> ShardLog:
    source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0, segment_bytes=80_000)])
    return await recover_shard(disk, "data", settings, source, ticking_clock(), lambda error: None)


async def append_all(logs: ShardLog) -> None:
    for number in range(0, BATCHES * PER_BATCH, PER_BATCH):
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        payloads = [f"{number + place} ".encode().ljust(PAYLOAD, b"x") for place in range(PER_BATCH)]
        logs.partition(1).append(make_batch(payloads), PER_BATCH, outcome.set_result)
        assert await outcome == number


async def read_all(logs: ShardLog) -> tuple[list[int], list[int]]:
    """Numbers of the messages, and the offsets at which a read said that they are damaged."""
    log, found, damaged = logs.partition(1), [], []
    offset = 0
    while offset < log.high_watermark:
        try:
            result = await log.reader.read(offset, 7, 10_000)
        except CorruptionError:
            damaged.append(offset)
            offset += 1
            continue
        if not result.count:
            break
        found += [int(payload.split(b" ")[0]) for payload in payloads_of(b"".join(result.buffers))]
        offset = result.last_offset + 1
    return found, damaged


def damage(disk: FaultDisk, batch: int, byte: int) -> None:
    """Flip a bit of the batch-th batch, wherever it stands."""
    marker = f"{batch * PER_BATCH} ".encode().ljust(PAYLOAD, b"x")
    for path, node in disk.files.items():
        place = bytes(node.current).find(marker) if path.endswith(".log") else -1
        if place >= 0:
            node.current[place - 256 - 48 + byte] ^= 0x10
            node.durable[:] = node.current
            return
    raise AssertionError("no segment holds the batch")


def stored() -> FaultDisk:
    disk = FaultDisk(1)

    async def live() -> None:
        logs = await open_log(disk, replace(SETTINGS, direct_bytes=1))
        await append_all(logs)
        assert logs.partition(1).segments_count > 2
        for segment in logs.partition(1).segments:
            await logs.partition(1).save_index(segment)
        await logs.close()

    asyncio.run(live())
    return disk


@pytest.mark.parametrize("batch", [0, 3, 25, 26, 27, 40])
@pytest.mark.parametrize("what", list(HIT))
@pytest.mark.parametrize("restart", [False, True], ids=["running", "after a restart"])
def test_only_the_damaged_batch_is_unreadable(what: str, batch: int, restart: bool) -> None:
    disk = stored()
    if restart:
        damage(disk, batch, HIT[what])

    async def live(skip: bool) -> tuple[list[int], list[int], int]:
        logs = await open_log(disk, replace(SETTINGS, skip_damaged=skip, tail_bytes=0))
        if not restart and not skip:
            damage(disk, batch, HIT[what])
        found, damaged = await read_all(logs)
        await logs.close()
        return found, damaged, logs.statistics().skipped_messages

    lost = set(range(batch * PER_BATCH, (batch + 1) * PER_BATCH))
    found, damaged, _ = asyncio.run(live(False))
    assert found == [number for number in range(BATCHES * PER_BATCH) if number not in lost | set(damaged)]
    if what == "payload":
        # The header is proved by the batch checksum, so exactly this batch is stepped over.
        assert set(damaged) == lost
    else:
        # Its length is unknown: everything up to the next index entry or segment is, and no more.
        assert lost <= set(damaged) and len(damaged) <= 30 * PER_BATCH
    found, damaged_offsets, skipped = asyncio.run(live(True))
    assert not damaged_offsets and skipped >= len(damaged)  # each read that passes them counts
    assert found == [number for number in range(BATCHES * PER_BATCH) if number not in damaged]


@pytest.mark.parametrize("fate", ["missing", "torn", "of another time", "lying"])
def test_an_index_file_is_only_a_hint(fate: str) -> None:
    disk = stored()
    paths = [path for path in disk.files if path.endswith(".index")]
    assert paths
    for path in paths:
        raw = disk.files[path].current
        if fate == "missing":
            del disk.files[path]
        elif fate == "torn":
            raw[60:] = bytes(len(raw) - 60)
        elif fate == "of another time":
            raw[:] = disk.files[paths[0]].current
        else:
            rewrite_with_wrong_positions(disk, path)

    async def live() -> tuple[list[int], list[int]]:
        logs = await open_log(disk, replace(SETTINGS, tail_bytes=0))
        return await read_all(logs)

    assert asyncio.run(live()) == (list(range(BATCHES * PER_BATCH)), [])


def test_a_flipped_bit_in_an_index_leads_no_search_by_time_astray() -> None:
    """No batch tells that its entry's time is wrong; the checksum of the index does."""
    disk = stored()

    async def offsets() -> list[int]:
        logs = await open_log(disk, replace(SETTINGS, tail_bytes=0))
        return [await logs.partition(1).reader.offset_at(timestamp) for timestamp in range(0, 8 * BATCHES, 3)]

    before = asyncio.run(offsets())
    assert len(set(before)) > 3
    for path in [path for path in disk.files if path.endswith(".index")]:
        index = decode_index(memoryview(disk.files[path].current), 1, int(path.split("/")[-1].split(".")[0]))
        assert index is not None
        last_time = FIRST_ENTRY + ENTRY_BYTES * (len(index.offsets) - 1) + TIME_IN_ENTRY
        disk.files[path].current[last_time : last_time + 8] = bytes(8)
    assert asyncio.run(offsets()) == before


def rewrite_with_wrong_positions(disk: FaultDisk, path: str) -> None:
    base = int(path.split("/")[-1].split(".")[0])
    assert path == index_path(DIRECTORY, base)
    index = decode_index(memoryview(disk.files[path].current), 1, base)
    assert index is not None
    index.positions = [position + 4096 for position in index.positions]
    raw = encode_index(index, 1, base)
    disk.files[path].current[: len(raw)] = raw


def test_sealed_segments_stay_open_up_to_the_limit() -> None:
    disk = stored()

    async def live() -> None:
        logs = await open_log(disk, replace(SETTINGS, tail_bytes=0, open_segments=1))
        for _ in range(2):
            assert (await read_all(logs))[0] == list(range(BATCHES * PER_BATCH))
            open_now = [one for one in logs.partition(1).segments if one.file is not None]
            assert len(open_now) <= 2  # one sealed, and the active one
        await logs.close()

    asyncio.run(live())
