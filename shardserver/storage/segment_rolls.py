"""Segments made for direct runs, in the background, a group of partitions at a time (storage rules 5 and 24).

A roll is no part of a direct run: that keeps its partition from the journal (rule 3), and small appends would wait for
the syncs of header and directory. While its segment is made a partition is as during a flush: what fits into a journal
write goes through the journal, and only larger batches wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from shardserver.errors import StorageError
from shardserver.storage.append_log import Running
from shardserver.storage.flush import GROUP_PARTITIONS
from shardserver.storage.log_tasks import LogTasks
from shardserver.storage.new_segments import make_segments
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.resources import LogResources

log = logging.getLogger(__name__)


class SegmentRolls:
    """Of one shard, one group at a time: those that come meanwhile are the next one.

    on_end: told of each partition whose roll has ended, well or not.
    """

    def __init__(self, resources: LogResources, tasks: LogTasks, on_end: Callable[[PartitionLog], None]) -> None:
        self._resources, self._tasks, self._on_end = resources, tasks, on_end
        self._due: deque[PartitionLog] = deque()
        self._is_making = False

    def start(self, partition: PartitionLog) -> None:
        """Of one that needs a segment and has no run in flight. The end of the roll is that of a run."""
        partition.begin_run(Running.FLUSH)
        self._due.append(partition)
        self._start_group()

    def _start_group(self) -> None:
        if self._due and not self._is_making:
            group = [self._due.popleft() for _ in range(min(len(self._due), GROUP_PARTITIONS))]
            self._is_making = True
            self._tasks.start(self._make(group))

    async def _make(self, group: Sequence[PartitionLog]) -> None:
        errors = await self._make_segments([one for one in group if one.fenced is None])
        self._is_making = False
        self._start_group()
        for one in group:
            error = errors.get(one)
            if error is None:
                self._end(one)
            else:
                self._tasks.start(self._end_failed(one, error))

    async def _make_segments(self, group: Sequence[PartitionLog]) -> dict[PartitionLog, StorageError | None]:
        try:
            return dict(zip(group, await make_segments(self._resources, group), strict=True))
        except Exception as error:  # a bug: these may be half changed, the others are not
            for one in group:
                one.fence_after_bug("a roll", error)
            return {}

    async def _end_failed(self, partition: PartitionLog, error: StorageError) -> None:
        """Appends through the journal go on; the next try is retry_s later, however many larger ones come."""
        log.warning("run_failed", extra={"fields": {"partition": partition.uid, "error": str(error)}})
        if partition.first_is_oversize:
            partition.fail_waiting(error)
        if partition.fenced is None:
            await asyncio.sleep(self._resources.settings.retry_s)
        self._end(partition)

    def _end(self, partition: PartitionLog) -> None:
        partition.finish_run()
        self._on_end(partition)
