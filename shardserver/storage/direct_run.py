"""Direct runs: bulk goes into its segment at once, without the journal (storage rule 2).

One of `fsync` is a write with its sync. One of `write` may be several writes, each answered when the device has taken
it, and one sync behind them (rule 8): nothing of the partition uses the journal before it, and when it fails, all of
them have.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from shardserver.errors import StorageError
from shardserver.storage.append_log import Running
from shardserver.storage.run_budget import Share
from shardserver.storage.settings import Durability
from shardserver.storage.synced_write import sync_written, write_synced

if TYPE_CHECKING:
    from shardserver.storage.flush import FlushWrite
    from shardserver.storage.partition_log import PartitionLog
    from shardserver.storage.segment import Segment

log = logging.getLogger(__name__)

# What may be answered and not synced, of one partition (rule 8).
UNSYNCED_BYTES, UNSYNCED_S = 16 << 20, 0.1
MAX_BYTES = 1 << 62


class DirectRun:
    """Of one partition; used once. share: of the bytes that all runs may have in flight, taken for the first write."""

    def __init__(self, partition: PartitionLog, most_bytes: int, share: Share) -> None:
        self._partition, self._most_bytes, self._share = partition, most_bytes, share
        self._disk, self._faults = partition.resources.disk, partition.resources.faults
        self._woken = asyncio.Event()
        self._is_late = False

    async def run(self) -> None:
        """What only the journal holds and about most_bytes of what waits, until it is synced or refused."""
        partition = self._partition
        if partition.running:  # a flush began between the decision and this task; its end wakes us again
            return
        if partition.is_memory:
            await self._flush()
            return
        partition.begin_run(Running.DIRECT)
        fallback = partition.next_offset
        try:
            partition.stamp_waiting(self._most_bytes)
            if partition.flushed_end < partition.next_offset:  # else what waited was refused meanwhile
                await self._write()
            partition.journaled_end = max(partition.journaled_end, partition.flushed_end)
            partition.note_durable(partition.flushed_end)
        except StorageError as error:
            is_cut = await partition.cut_again(error)  # before anything else gets the offsets of this run
            partition.roll_back(max(fallback, partition.high_watermark), error)
            if not is_cut:
                partition.fence(error)
            self._tell(error)
        finally:
            partition.finish_run()

    async def _flush(self) -> None:
        try:
            await self._partition.flush()
        except StorageError as error:  # what was acknowledged stays in memory; the end of the run tries again
            self._tell(error)

    def _tell(self, error: StorageError) -> None:
        log.warning("run_failed", extra={"fields": {"partition": self._partition.uid, "error": str(error)}})

    async def _write(self) -> None:
        segment = self._partition.segments[-1]  # bulk_runs.py has it made before
        if self._partition.identity.durability is Durability.WRITE:
            await self._write_several(segment)
            return
        error: StorageError | None = None
        write = self._build(segment, [])
        try:
            await write_synced(self._disk, self._faults, segment.file, write.position, write.run.buffers)
        except StorageError as failure:
            error = failure
        await self._partition.end_writes([write], error)
        if error is not None:
            raise error

    def _build(self, segment: Segment, writes: list[FlushWrite]) -> FlushWrite:
        """Of all that is stamped, behind the last of `writes`, to which it is added."""
        behind = writes[-1] if writes else None
        writes.append(self._partition.build_write(segment, self._partition.next_offset, MAX_BYTES, behind))
        self._partition.resources.hooks.before_submit()
        return writes[-1]

    # Several writes before a sync

    async def _write_several(self, segment: Segment) -> None:
        """One that fails is refused, and does not take those before it along: they were answered."""
        writes: list[FlushWrite] = []
        failed: list[FlushWrite] = []
        error: StorageError | None = None
        since = self._faults.number
        try:
            await self._write_on(segment, writes)
        except StorageError as failure:
            failed, error = [writes.pop()], failure
        try:
            if writes:
                parts = [(one.position, one.run.buffers) for one in writes]
                await sync_written(self._disk, self._faults, segment.file, since, parts)
                await self._partition.end_writes(writes, None)
        except StorageError as failure:
            failed, error = writes + failed, failure
        if error is not None:
            await self._partition.end_writes(failed, error)
            raise error

    async def _write_on(self, segment: Segment, writes: list[FlushWrite]) -> None:
        """Until a sync is due. Raises StorageError: the last of `writes` has failed."""
        alarm = asyncio.get_running_loop().call_later(UNSYNCED_S, self._end_in_time)
        self._partition.on_append = self._woken.set
        try:
            while True:
                write = self._build(segment, writes)
                await self._disk.write(segment.file, write.position, write.run.buffers)
                self._share.give_back()
                self._partition.unsynced_end = write.run.end_offset
                self._partition.note_written(write.run.end_offset)
                if not await self._has_more(write):
                    return
                self._partition.stamp_waiting(self._most_bytes)
        finally:
            alarm.cancel()
            self._partition.on_append = None

    def _end_in_time(self) -> None:
        self._is_late = True
        self._woken.set()

    async def _has_more(self, last: FlushWrite) -> bool:
        """Bulk has come in time, and another write may take it. What is small waits for the sync and the journal."""
        try:
            return await self._take_more(last)
        finally:
            self._share.end_wait()

    async def _take_more(self, last: FlushWrite) -> bool:
        partition = self._partition
        while not (partition.is_hurried or self._is_late or partition.fenced is not None):
            if partition.has_waiting:
                size = min(partition.waiting_bytes, self._most_bytes)
                if not self._may_take(last, size):
                    return False
                if self._share.take(size):
                    return True
                self._share.wait(size, self._woken.set)  # others are in flight: a sync now would come too early
            self._woken.clear()
            await self._woken.wait()
        return False

    def _may_take(self, last: FlushWrite, size: int) -> bool:
        partition = self._partition
        return (
            partition.waiting_bytes >= partition.resources.settings.direct_bytes
            and last.end - last.segment.end + size <= UNSYNCED_BYTES
            and last.end < partition.identity.segment_bytes
        )
