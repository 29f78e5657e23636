"""Bulk goes out in runs of its own, few at a time, so that small appends do not wait behind them (storage rule 26)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shardserver.storage.log_tasks import LogTasks
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.turn import Turn

# In flight at a time. Two streams of 1 MiB give 92 % of the bandwidth, and small appends wait three times as long
# beside them; beside eight, seventeen times (storage rule 26). With nothing small waiting, enough for any device.
BULK_BESIDE_SMALL_BYTES, BULK_BYTES = 2 << 20, 16 << 20
SMALL_LASTS_S = 0.1


class BulkRuns:
    """The direct runs of one shard. most_bytes: of one run. on_end: told of the partition whose run has ended."""

    def __init__(self, turn: Turn, tasks: LogTasks, most_bytes: int, on_end: Callable[[PartitionLog], None]) -> None:
        self._turn, self._tasks, self._most_bytes, self._on_end = turn, tasks, most_bytes, on_end
        self._in_flight_bytes = 0

    def start(self, small_at: float) -> None:
        """Those that are due and may go. small_at: when a small append was written last, in the loop's seconds."""
        bulk = self._turn.bulk()
        # Who has just been answered will ask again: small appends are there while the last one is not long ago.
        small = asyncio.get_running_loop().time() - small_at < SMALL_LASTS_S or self._turn.any_small()
        limit = BULK_BESIDE_SMALL_BYTES if small else BULK_BYTES
        for partition in bulk:
            most = min(limit, self._most_bytes)
            size = min(partition.unwritten_bytes, most)
            if self._in_flight_bytes and self._in_flight_bytes + size > limit:
                return  # held back, dirty, until a run has ended
            self._turn.take(partition)
            self._in_flight_bytes += size
            self._tasks.start(self._run(partition, size, most))

    async def _run(self, partition: PartitionLog, size: int, most_bytes: int) -> None:
        try:
            await partition.direct(most_bytes)
        except Exception as error:  # a bug: this partition may be half changed, the others are not
            partition.fence_after_bug("a run", error)
        self._in_flight_bytes -= size
        self._on_end(partition)
