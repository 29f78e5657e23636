"""Partitions that move from one shard's log to another's: their files stay, who writes to them changes.

The former owner drains, flushes, syncs and closes (`release`); the new one opens the files and journals that it has
them, under the new term (`adopt`). Until metadata has recorded the move, that record counts for nothing and nothing is
written to the files, so either side can give up: the former owner opens them again (`resume`), the new one forgets.
Format: docs/formats/journal.md, kind 4. Proof: docs/durability.md, "A partition that moves".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from shardserver.errors import NotOwnerError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.committed_offsets import MovedOffset
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.partition_recovery import open_unchanged
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.staging import Staging

if TYPE_CHECKING:
    from shardserver.storage.shard_log import ShardLog

CONCURRENCY = 4

Item = TypeVar("Item")


class ReleasedPartition(msgspec.Struct, frozen=True):
    """What a partition's former owner left: all below next_offset is in segments, synced.

    position: the end of the active segment in bytes; 0: there is no segment. last_timestamp: microseconds.
    offsets: all committed offsets, as (consumer kind, consumer id, offset).
    """

    uid: int
    segment_base: int
    position: int
    next_offset: int
    last_timestamp: int
    offsets: list[MovedOffset]

    @property
    def hint(self) -> fmt.Hint:
        return fmt.Hint(self.segment_base, self.position, self.next_offset, self.last_timestamp, self.next_offset)


class Adoption:
    """One partition's arrival on its way into the journal: its adoption record, then its offsets."""

    def __init__(self, partition: PartitionLog, state: ReleasedPartition) -> None:
        self.partition = partition
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        records = [(fmt.KIND_ADOPTION, state.hint.encode())]
        records += [(fmt.KIND_OFFSET, fmt.encode_offset(*offset)) for offset in state.offsets]
        self._records = deque(records)

    def add_to(self, staging: Staging, shard: int) -> bool:
        """Add what fits; False: the rest needs another write."""
        partition = self.partition
        while self._records:
            kind, payload = self._records[0]
            if not staging.fits(len(payload)):
                return False
            staging.add(kind, 0, shard, partition.uid, partition.identity.term, payload)
            self._records.popleft()
        return True

    def journaled(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def refuse(self, error: StorageError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # the caller waits for one after the other; it may have met an earlier one


def refuse_changes(logs: ShardLog, partitions: Sequence[PartitionLog]) -> None:
    """The first step of a release. Raises what keeps one of them from leaving; then all serve on."""
    for partition in partitions:
        refusal = logs.failed or partition.refusal or partition.fenced
        if refusal is not None:
            raise refusal
    for partition in partitions:
        partition.refusal = NotOwnerError(f"partition {partition.uid} moves to another shard")


async def release(logs: ShardLog, partitions: Sequence[PartitionLog]) -> list[ReleasedPartition]:
    """See ShardLog.release_partitions; changes are refused already."""
    try:
        await _empty(logs, partitions)
    except BaseException:
        for partition in partitions:
            partition.refusal = None
        raise
    states = [_state_of(logs, partition) for partition in partitions]
    for partition, state in zip(partitions, states, strict=True):
        logs.shut_partition(partition, state)
    await _each(PartitionLog.close_files, partitions)
    return states


async def _empty(logs: ShardLog, partitions: Sequence[PartitionLog]) -> None:
    """Nothing waits, nothing is in memory only, nobody deletes segments, and the files hold just what counts."""
    await logs.drain(set(partitions))
    await logs.flush_partitions([one for one in partitions if not one.is_flushed])
    await _each(_settle(logs), partitions)
    for partition in partitions:
        refusal = logs.failed or partition.fenced
        if refusal is not None:
            raise refusal


def _settle(logs: ShardLog) -> Callable[[PartitionLog], Awaitable[None]]:
    async def settle(partition: PartitionLog) -> None:
        await partition.end_removals()
        await partition.trim()
        await logs.save_indexes(partition)

    return settle


def _state_of(logs: ShardLog, partition: PartitionLog) -> ReleasedPartition:
    assert partition.is_flushed and partition.is_drained
    end = partition.hint() or fmt.Hint(0, 0, partition.next_offset, partition.last_timestamp, partition.next_offset)
    offsets = logs.offsets.of_partition(partition.uid)
    place = (end.segment_base, end.position, end.next_offset, end.last_timestamp)
    return ReleasedPartition(partition.uid, *place, offsets)


async def resume(logs: ShardLog, released: Sequence[tuple[PartitionLog, ReleasedPartition]]) -> None:
    """See ShardLog.resume_partitions."""

    async def open_again(one: tuple[PartitionLog, ReleasedPartition]) -> None:
        partition, state = one
        if state.position:
            await _open(logs, partition, state)
        logs.open_partition(partition)

    await _each(open_again, released)


async def adopt(logs: ShardLog, arrivals: Sequence[tuple[PartitionIdentity, ReleasedPartition]]) -> list[PartitionLog]:
    """See ShardLog.adopt_partitions."""

    async def open_one(one: tuple[PartitionLog, ReleasedPartition]) -> None:
        await _open(logs, *one)

    created: list[PartitionLog] = []
    try:
        for identity, state in arrivals:
            assert identity.uid == state.uid
            created.append(logs.add_arriving(identity))
            _begin_arrival(logs, created[-1], state)
        pairs = list(zip(created, (state for _, state in arrivals), strict=True))
        await _each(open_one, [pair for pair in pairs if pair[1].position])
        await logs.journal_adoptions([Adoption(partition, state) for partition, state in pairs])
    except BaseException:
        for partition in created:
            logs.give_up_arrival(partition)
        raise
    return created


def _begin_arrival(logs: ShardLog, partition: PartitionLog, state: ReleasedPartition) -> None:
    """Its offsets are here before its adoption is in the journal: a snapshot that covers the one has the others."""
    reason = NotOwnerError(f"partition {partition.uid} has not moved here yet")
    partition.refusal = partition.closed = reason
    partition.closed_hint = state.hint if state.position else None
    partition.last_timestamp = state.last_timestamp
    logs.offsets.place(partition.uid, state.offsets)
    logs.offsets.close_partition(partition.uid, reason)


async def _open(logs: ShardLog, partition: PartitionLog, state: ReleasedPartition) -> None:
    await open_unchanged(partition, state.hint)
    if not logs.serves(partition):
        await partition.close_files()
        raise StorageError(f"partition {partition.uid} was forgotten while it was opened")


async def _each(work: Callable[[Item], Awaitable[None]], items: Iterable[Item]) -> None:
    """A few at a time. Raises the first error, after which no further one begins."""
    left = deque(items)

    async def worker() -> None:
        while left:
            try:
                await work(left.popleft())
            except BaseException:
                left.clear()
                raise

    results = await asyncio.gather(*(worker() for _ in range(min(CONCURRENCY, len(left)))), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
