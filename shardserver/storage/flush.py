"""Partitions flushed together: a run for each, one group of writes, then a sync of each file (storage rule 24).

A flush moves what is acknowledged, and in the journal only, into segments. Nobody waits for it but the journal's files,
so it goes through the disk's background, a group at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardserver.errors import StorageError
from shardserver.storage.resources import LogResources
from shardserver.storage.run import Run
from shardserver.storage.segment import Segment
from shardserver.storage.synced_write import write_group_synced

if TYPE_CHECKING:
    from shardserver.storage.partition_log import PartitionLog

GROUP_PARTITIONS, GROUP_BYTES = 64, 8 << 20
BUILD_CONCURRENCY = 4  # new segments are made for some of them


@dataclass(frozen=True, slots=True)
class FlushWrite:
    """A run, and the segment at whose end it is to stand."""

    segment: Segment
    run: Run


def take_group(left: deque[PartitionLog]) -> tuple[list[PartitionLog], list[PartitionLog]]:
    """(a group's worth of those that can be flushed now, those that have nothing to flush); neither is left any more.

    Those that have a run in flight stay behind. A partition that leaves is begun no more once it is flushed.
    """
    group: list[PartitionLog] = []
    nothing: list[PartitionLog] = []
    size = 0
    for _ in range(len(left)):
        one = left.popleft()
        if not one.has_unflushed:
            nothing.append(one)
        elif one.running:
            left.append(one)
        else:
            group.append(one)
            size += min(one.tail.bytes_from(one.flushed_end), GROUP_BYTES)
        if size >= GROUP_BYTES or len(group) == GROUP_PARTITIONS:
            break
    return group, nothing


async def flush_group(resources: LogResources, partitions: Sequence[PartitionLog]) -> list[StorageError | None]:
    """One run of each, with its sync; an error for each whose run failed.

    Waits for the runs of others that are in flight, holding none of its own.
    """
    while busy := [one for one in partitions if one.running]:
        await busy[0].end_run()
    for one in partitions:
        one.begin_flush()
    built = await _build_all(partitions)
    errors = [one if isinstance(one, StorageError) else None for one in built]
    writes = [(number, one) for number, one in enumerate(built) if isinstance(one, FlushWrite)]
    resources.hooks.before_submit()
    group = [(one.segment.file, one.segment.end, one.run.buffers) for _, one in writes]
    for (number, _), error in zip(
        writes, await write_group_synced(resources.disk, resources.faults, group), strict=True
    ):
        errors[number] = error
    for partition, write, error in zip(partitions, built, errors, strict=True):
        await partition.end_flush(write if isinstance(write, FlushWrite) else None, error)
    return errors


async def _build_all(partitions: Sequence[PartitionLog]) -> list[FlushWrite | StorageError | None]:
    """In their order. Only those that need a new segment take a task."""
    gate = asyncio.Semaphore(BUILD_CONCURRENCY)
    late = [one for one in partitions if one.needs_segment]
    made = dict(zip(late, await asyncio.gather(*(_build(one, gate) for one in late)), strict=True))
    return [made[one] if one in made else one.build_flush_here() for one in partitions]


async def _build(partition: PartitionLog, gate: asyncio.Semaphore) -> FlushWrite | StorageError | None:
    async with gate:
        try:
            return await partition.build_flush()
        except StorageError as error:
            return error
