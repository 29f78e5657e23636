"""Bulk goes out in runs of its own, few at a time, so that small appends do not wait behind them (storage rule 26)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shardserver.storage.direct_run import DirectRun
from shardserver.storage.log_tasks import LogTasks
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.resources import LogResources
from shardserver.storage.run_budget import RunBudget, Share
from shardserver.storage.segment_rolls import SegmentRolls
from shardserver.storage.turn import Turn

# In flight at a time. Two streams of 1 MiB give 92 % of the bandwidth, and small appends wait three times as long
# beside them; beside eight, seventeen times (storage rule 26). With nothing small waiting, enough for any device.
BULK_BESIDE_SMALL_BYTES, BULK_BYTES = 2 << 20, 16 << 20
SMALL_LASTS_S = 0.1
# Syncs that are in flight together end together, and the device has nothing to do until those answered have asked
# again: from so much on, a quarter of what there is to write waits, and takes the place of what has ended.
BULK_LEAST_BYTES = 6 << 20


class BulkRuns:
    """The direct runs of one shard, and their rolls. on_end: told of the partition whose run or roll has ended."""

    def __init__(
        self, resources: LogResources, turn: Turn, tasks: LogTasks, on_end: Callable[[PartitionLog], None]
    ) -> None:
        self._turn, self._tasks, self._on_end = turn, tasks, on_end
        self._most_bytes = resources.settings.flush_run_bytes  # of one write
        self._rolls = SegmentRolls(resources, tasks, on_end)
        self._budget = RunBudget(self._limit_bytes, turn.look_again)
        self._waiting_bytes = 0

    def _limit_bytes(self) -> int:
        # Who has just been answered will ask again: small appends are there while the last one is not long ago.
        is_recent = asyncio.get_running_loop().time() - self._turn.small_at < SMALL_LASTS_S
        if is_recent or self._turn.any_small():
            return BULK_BESIDE_SMALL_BYTES
        there_is = self._budget.taken_bytes + self._budget.waiting_bytes + self._waiting_bytes
        return min(BULK_BYTES, max(BULK_LEAST_BYTES, there_is * 3 // 4))

    def start(self) -> None:
        """Those that are due and may go. The others stay dirty, as do those that need a segment first."""
        due = [partition for partition in self._turn.bulk() if not self._rolled(partition)]
        self._waiting_bytes = sum(partition.unwritten_bytes for partition in due)
        for partition in due:
            most, share = min(self._budget.limit_bytes(), self._most_bytes), Share(self._budget)
            if not share.take(min(partition.unwritten_bytes, most)):
                return
            self._waiting_bytes -= partition.unwritten_bytes
            self._turn.take(partition)
            self._tasks.start(self._run(partition, most, share))

    def _rolled(self, partition: PartitionLog) -> bool:
        """Its segment is being made now. Under `memory` its run is a flush, which makes what it needs."""
        if partition.is_memory or not partition.needs_segment:
            return False
        self._rolls.start(partition)
        return True

    async def _run(self, partition: PartitionLog, most_bytes: int, share: Share) -> None:
        try:
            await DirectRun(partition, most_bytes, share).run()
        except Exception as error:  # a bug: this partition may be half changed, the others are not
            partition.fence_after_bug("a run", error)
        share.give_back()
        self._on_end(partition)
        self._turn.look_again()
