"""The cleaner of one shard: seals what has become old, deletes sealed segments that are due, oldest first.

A segment is due when its newest message has expired, and when the sealed ones that follow it fill the partition's
limit. Both moments can be told from the segments' headers alone, so a restart changes nothing. A due segment that a
committed offset has not passed waits for that consumer, a bounded time (docs/operations.md, "Retention").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardserver.errors import NotOwnerError, StorageError
from shardserver.storage.committed_offsets import CommittedOffsets
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.segment import Segment
from shardserver.storage.settings import RetentionSettings

if TYPE_CHECKING:
    from shardserver.storage.shard_log import ShardLog

log = logging.getLogger(__name__)

NEVER = 1 << 64
# Between two of them others have their turn: most have no limit, and a look at one costs about a microsecond.
PARTITIONS_AT_A_TIME = 64


@dataclass(slots=True)
class RetentionStatistics:
    """Since the start. unread: of the deleted ones, those that a committed offset had not passed."""

    rolled_segments: int = 0
    deleted_segments: int = 0
    unread_segments: int = 0


def newest_timestamps(segments: list[Segment]) -> list[int]:
    """Of each sealed segment, microseconds, or a little later: its successor's header was made when it was sealed."""
    return [following.previous_timestamp for following in segments[1:]]


def due_times(segments: list[Segment], expiry_us: int | None, max_bytes: int | None) -> list[int]:
    """When each sealed segment is due, in microseconds; NEVER: it is not."""
    newest = newest_timestamps(segments)
    due = [NEVER if expiry_us is None else one + expiry_us for one in newest]
    if max_bytes is None:
        return due
    filled = _filled_at([one.data_bytes for one in segments[:-1]], newest, max_bytes)
    return [min(pair) for pair in zip(due, filled, strict=True)]


def _filled_at(sizes: list[int], newest: list[int], max_bytes: int) -> list[int]:
    """When each one and its followers were more than max_bytes together."""
    found, total, end = [], 0, 0
    for size in sizes:
        while end < len(sizes) and total <= max_bytes:
            total += sizes[end]
            end += 1
        found.append(newest[end - 1] if total > max_bytes else NEVER)
        total -= size
    return found


class Retention:
    """Owned by one shard. `settings` may be replaced while it serves. clock: microseconds since the epoch."""

    def __init__(
        self, logs: ShardLog, offsets: CommittedOffsets, clock: Callable[[], int], settings: RetentionSettings
    ) -> None:
        self._logs, self._offsets, self._clock, self.settings = logs, offsets, clock, settings
        self.statistics = RetentionStatistics()

    async def look(self) -> int:
        """Once over all partitions; gives how many segments went. One that fails is logged, and looked at next time."""
        deleted = 0
        for number, partition in enumerate(list(self._logs.partitions)):
            if number % PARTITIONS_AT_A_TIME == 0:
                await asyncio.sleep(0)
            if self._logs.failed is not None:
                break
            try:
                deleted += await self._look_at(partition)
            except (StorageError, NotOwnerError) as error:  # it may be gone, or leaving
                if self._logs.serves(partition):
                    log.warning("retention_failed", extra={"fields": {"partition": partition.uid, "error": str(error)}})
        return deleted

    async def _look_at(self, partition: PartitionLog) -> int:
        identity = partition.identity
        if identity.expiry_us is None and identity.max_bytes is None and not partition.has_unneeded:
            return 0
        if identity.expiry_us is not None:
            await self._roll_if_old(partition, min(self.settings.roll_us, identity.expiry_us))
        due = due_times(partition.segments, identity.expiry_us, identity.max_bytes)
        return await self.delete(partition, self._first_kept(partition, due))

    async def _roll_if_old(self, partition: PartitionLog, age_us: int) -> None:
        oldest = await partition.oldest_unsealed()
        if oldest is not None and oldest + age_us <= self._clock():
            self.statistics.rolled_segments += await self._logs.roll(partition)

    def _first_kept(self, partition: PartitionLog, due: list[int]) -> int:
        """The base offset of the first segment that stays, of those that are due at `due`."""
        segments, now, wait_us = partition.segments, self._clock(), self.settings.wait_us
        lowest = self._offsets.lowest(partition.uid) if due and due[0] <= now else None
        kept = 0
        for due_us, following in zip(due, segments[1:], strict=True):
            unread = lowest is not None and following.base_offset > lowest + 1
            if now < due_us or (unread and wait_us is not None and now < due_us + wait_us):
                break
            kept += 1
        return segments[kept].base_offset if segments else 0

    def cut_offset(self, partition: PartitionLog, count: int) -> int:
        """The first offset that stays when someone asks for the oldest `count` sealed segments to be deleted.

        Who asks makes them due: for consumers they wait from their newest message on.
        """
        newest = newest_timestamps(partition.segments)
        return self._first_kept(partition, [one if place < count else NEVER for place, one in enumerate(newest)])

    async def delete(self, partition: PartitionLog, first_kept: int) -> int:
        """Delete the segments that lie wholly below an offset; gives how many went.

        Raises StorageError, and NotOwnerError while the partition moves.
        """
        lowest = self._offsets.lowest(partition.uid)
        bases = [one.base_offset for one in partition.segments[1:] if one.base_offset <= first_kept]
        if not bases and not partition.has_unneeded:
            return 0
        deleted = await partition.delete_segments(len(bases), keep_from=first_kept)
        unread = sum(lowest is not None and base > lowest + 1 for base in bases)
        self.statistics.deleted_segments += deleted
        if deleted and unread:
            self.statistics.unread_segments += min(deleted, unread)
            fields = {"partition": partition.uid, "segments": unread, "lowest_committed": lowest}
            log.warning("unread_segments_deleted", extra={"fields": fields | {"first_offset": partition.first_offset}})
        return deleted

    # A limit of the whole server: the shards compare their oldest segments, and whoever has the oldest deletes it.

    def _oldest_holder(self) -> PartitionLog | None:
        holders = [one for one in self._logs.partitions if len(one.segments) > 1 and one.refusal is None]
        return min(holders, key=lambda one: one.segments[1].previous_timestamp, default=None)

    @property
    def oldest_sealed_timestamp(self) -> int:
        """Of the last message of the oldest sealed segment, in microseconds; 0: there is none."""
        oldest = self._oldest_holder()
        return max(1, oldest.segments[1].previous_timestamp) if oldest is not None else 0

    async def expire_oldest(self) -> int:
        """Delete the oldest sealed segment of all partitions, read or not; gives how many went. Raises StorageError."""
        oldest = self._oldest_holder()
        if oldest is None:
            return 0
        try:
            return await self.delete(oldest, oldest.segments[1].base_offset)
        except NotOwnerError:  # it keeps them until it has moved
            return 0
