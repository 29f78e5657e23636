"""The data directory of a small server, made without processes: two partitions, segments of 64 KiB, a small journal."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.owned_partitions import owned_identities
from shardserver.core.planning import Plan
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings
from shardserver.storage.shard_log import ShardLog
from shardserver.supervisor.data_directory import DataDirectory
from tests.batches import make_batch, payloads_of

SETTINGS = LogSettings(
    journal_file_bytes=256 << 10,
    journal_files=4,
    max_write_bytes=64 << 10,
    direct_bytes=32 << 10,
    tail_bytes=1 << 20,
    linger_s=0.01,
)
PER_BATCH, PAYLOAD = 2, 1500
BATCHES_PER_RUN = 10


class Clock:
    """Microseconds that grow with each look."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


async def make_metadata(path: Path, *events: ev.Event) -> None:
    """A directory with a stream, a topic of two partitions (uids 1 and 2), a root user, and what the events say."""
    data = DataDirectory(str(path))
    data.open(require_data=False)
    disk = ThreadDisk(1)
    log = MetadataLog(disk, str(path / "metadata"))
    writer = MetadataWriter(log, lambda: 5)
    await writer.recover()
    first: list[ev.Event] = [
        ev.UserCreated(md.User(md.ROOT_ID, "iggy", 5, "hash")),
        ev.StreamCreated(1, "orders", 5),
        ev.TopicCreated(1, 1, "new", 5, {"segment_size": 64 << 10}, [1, 2], [0, 0]),
    ]
    for event in (*first, *events):
        await writer.change(lambda state, context, event=event: Plan([event]))
    await log.close()
    await disk.shut_down()
    data.close()


async def read_replica(disk: ThreadDisk, path: Path) -> md.Metadata:
    log = MetadataLog(disk, str(path / "metadata"))
    try:
        return await MetadataWriter(log, lambda: 5).recover()
    finally:
        await log.close()


@asynccontextmanager
async def open_logs(path: Path, shard: int = 0) -> AsyncIterator[ShardLog]:
    """As a start opens them, closed cleanly."""
    disk = ThreadDisk(2)
    metadata = await read_replica(disk, path)
    source = RecoveryInput(shard, metadata.next_uid, owned_identities(metadata, shard, Durability.FSYNC))
    logs = await recover_shard(disk, str(path), SETTINGS, source, Clock(), lambda error: None)
    try:
        yield logs
    finally:
        await logs.close()
        await disk.shut_down()


async def append(logs: ShardLog, uid: int, first: int, batches: int) -> None:
    """Messages with rising numbers, PER_BATCH a batch."""
    for number in range(first, first + batches * PER_BATCH, PER_BATCH):
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        payloads = [f"{one} ".encode().ljust(PAYLOAD, b"x") for one in range(number, number + PER_BATCH)]
        logs.partition(uid).append(logs.copy_batch(make_batch(payloads)), PER_BATCH, outcome.set_result)
        assert isinstance(await outcome, int)


async def read_all(logs: ShardLog, uid: int) -> list[int]:
    """Numbers of all messages by polls from the first offset on. Raises CorruptionError at a damaged one."""
    log, found = logs.partition(uid), []
    offset = log.first_offset
    while offset < log.high_watermark:
        result = await log.reader.read(offset, 7, 20_000)
        if not result.count:
            break
        found += [int(payload.split(b" ")[0]) for payload in payloads_of(b"".join(result.buffers))]
        offset = result.last_offset + 1
    return found


async def make_stopped(path: Path, *, batches: int = 60, unflushed: int = 0) -> None:
    """Partition 1 with `batches` in its segments; then, of both partitions, `unflushed` that only the journal holds.

    unflushed: the directory is what a kill leaves, else that of a clean stop.
    """
    await make_metadata(path)
    async with open_logs(path) as logs:
        for number in range(0, batches, BATCHES_PER_RUN):
            await append(logs, 1, number * PER_BATCH, min(BATCHES_PER_RUN, batches - number))
            await logs.partition(1).flush()
        if unflushed:
            await append(logs, 1, batches * PER_BATCH, unflushed)
            await append(logs, 2, 0, unflushed)
            killed = path.with_name("killed")
            shutil.copytree(path, killed)
    if unflushed:
        shutil.rmtree(path)
        killed.rename(path)


def segments(path: Path, uid: int) -> list[Path]:
    return sorted((path / "partitions" / f"{uid:016x}").glob("*.log"))


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 0x10
    path.write_bytes(raw)


def batch_position(path: Path, number: int) -> int:
    """Where in a file the batch stands whose first message has this number."""
    marker = f"{number} ".encode().ljust(PAYLOAD, b"x")
    return path.read_bytes().index(marker) - 256 - 48
