"""Partitions flushed together: a run for each, one group of writes, then a sync of each file (storage rule 24).

A flush moves what is acknowledged, and in the journal only, into segments. Nobody waits for it but the journal's files,
so it goes through the disk's background, a group at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardserver.errors import StorageError
from shardserver.storage.log_tasks import LogTasks
from shardserver.storage.new_segments import make_segments
from shardserver.storage.resources import LogResources
from shardserver.storage.run import Run
from shardserver.storage.segment import Segment
from shardserver.storage.synced_write import write_group_synced

if TYPE_CHECKING:
    from shardserver.storage.partition_log import PartitionLog

log = logging.getLogger(__name__)

GROUP_PARTITIONS, GROUP_BYTES = 64, 8 << 20


@dataclass(frozen=True, slots=True)
class FlushWrite:
    """A run, and where in its segment it is to stand."""

    segment: Segment
    position: int
    run: Run

    @property
    def end(self) -> int:
        return self.position + self.run.size_bytes


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
    built = await _build_all(resources, partitions)
    errors = [one if isinstance(one, StorageError) else None for one in built]
    writes = [(number, one) for number, one in enumerate(built) if isinstance(one, FlushWrite)]
    resources.hooks.before_submit()
    group = [(one.segment.file, one.position, one.run.buffers) for _, one in writes]
    for (number, _), error in zip(
        writes, await write_group_synced(resources.disk, resources.faults, group), strict=True
    ):
        errors[number] = error
    for partition, write, error in zip(partitions, built, errors, strict=True):
        await partition.end_flush(write if isinstance(write, FlushWrite) else None, error)
    return errors


async def _build_all(
    resources: LogResources, partitions: Sequence[PartitionLog]
) -> list[FlushWrite | StorageError | None]:
    """In their order; None: there is nothing to flush."""
    due = [one for one in partitions if one.has_flushable]
    late = [one for one in due if one.needs_segment]
    errors = dict(zip(late, await make_segments(resources, late), strict=True))
    built = {one: errors.get(one) or one.build_flush() for one in due}
    return [built.get(one) for one in partitions]


class PartitionFlusher:
    """Any number of partitions, a group at a time.

    on_flushed: told of each of which nothing is left to flush. on_group: told that a group has ended, well or not.
    """

    def __init__(
        self, resources: LogResources, on_flushed: Callable[[PartitionLog], None], on_group: Callable[[], None]
    ) -> None:
        self._resources, self._on_flushed, self._on_group = resources, on_flushed, on_group
        self.runs = 0  # that went well, since the start

    async def flush(self, partitions: Sequence[PartitionLog]) -> StorageError | None:
        """What is acknowledged now; gives the error of the first one that could not be flushed. The others are."""
        failed: StorageError | None = None
        for one in partitions:
            one.aim_flush()
        left = deque(partitions)
        while left:
            group, nothing = take_group(left)
            for one in nothing:
                self._on_flushed(one)
            if group:
                errors = await flush_group(self._resources, group)
                self._end_group(group, errors, left)
                failed = failed or next((error for error in errors if error is not None), None)
            elif left:
                await left[0].end_run()
        return failed

    def _end_group(
        self, group: list[PartitionLog], errors: list[StorageError | None], left: deque[PartitionLog]
    ) -> None:
        for one, error in zip(group, errors, strict=True):
            if error is None:
                self.runs += 1
                left.append(one)  # a group takes a bounded part of it
        self._on_group()


class BackgroundFlush:
    """At most one flush of a shard at a time that nobody waits for. error: why the last one failed; None: it did not.

    retry: called retry_s after one has failed.
    """

    def __init__(self, tasks: LogTasks, shard: int, retry_s: float, retry: Callable[[], None]) -> None:
        self._tasks, self._shard, self._retry_s, self._retry = tasks, shard, retry_s, retry
        self._task: asyncio.Task[None] | None = None
        self.error: StorageError | None = None

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Unless one is running."""
        if self._task is None:
            self._task = self._tasks.start(self._run(work))

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except StorageError as error:
            log.warning("flush_failed", extra={"fields": {"shard": self._shard, "error": str(error)}})
            self.error = error
            asyncio.get_running_loop().call_later(self._retry_s, self._retry)
        else:
            self.error = None
        finally:
            self._task = None
