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
from typing import Protocol, TypeVar

import msgspec

from shardserver.errors import BackpressureError, NotOwnerError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.committed_offsets import CommittedOffsets, MovedOffset
from shardserver.storage.log_tasks import LogTasks
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.partition_recovery import open_unchanged
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.staging import Staging

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


class MovingLogs(Protocol):
    """What a move asks of its shard's logs; ShardLog says more of each."""

    failed: StorageError | None

    @property
    def offsets(self) -> CommittedOffsets: ...
    def partition(self, uid: int) -> PartitionLog: ...
    def serves(self, partition: PartitionLog) -> bool: ...
    def add_arriving(self, identity: PartitionIdentity) -> PartitionLog: ...
    def give_up_arrival(self, partition: PartitionLog) -> None: ...
    def shut_partition(self, partition: PartitionLog) -> None: ...
    def open_partition(self, partition: PartitionLog) -> None: ...
    async def drain(self, partitions: set[PartitionLog]) -> None: ...
    async def flush_partitions(self, partitions: list[PartitionLog]) -> None: ...
    async def save_indexes(self, partition: PartitionLog) -> None: ...
    async def journal_adoptions(self, adoptions: list[Adoption]) -> None: ...


class PartitionMoves:
    """Partitions that leave one shard's logs and arrive in them; knows which are released and not yet forgotten."""

    def __init__(self, logs: MovingLogs, tasks: LogTasks) -> None:
        self._logs, self._tasks = logs, tasks
        self._released: dict[PartitionLog, ReleasedPartition] = {}

    def forget(self, partition: PartitionLog) -> None:
        """The move is recorded, or the partition deleted: nobody can ask for it to be resumed."""
        self._released.pop(partition, None)

    async def release_partition(self, uid: int) -> ReleasedPartition:
        """As release_partitions, of one."""
        return (await self.release_partitions([uid]))[0]

    async def release_partitions(self, uids: Sequence[int]) -> list[ReleasedPartition]:
        """Close partitions so that another shard can open their files; what they were, in the order of uids.

        From the call on appends and changes of offsets are refused with NotOwnerError, and reads from the end on. What
        waits is answered as usual before.

        Raises:
            StorageError: of a partition that is fenced or could not be flushed (DiskFullError). NotOwnerError: one is
                moving already. BackpressureError: one may be asked again for sends that its former process did not
                answer. KeyError: none of that uid is here. All of them serve on then.
        """
        partitions = [self._logs.partition(uid) for uid in uids]
        for one in partitions:
            if one.has_unknown_answers:  # they are asked for again here, and only here are they found
                raise BackpressureError(f"partition {one.uid}: its shard has just restarted; try again in a minute")
        _refuse_changes(self._logs, partitions)
        return await self._tasks.shield(self._release(partitions), partitions)

    async def resume_partition(self, uid: int) -> None:
        """Serve a released partition on: the move was given up, and nobody else has its files open any more.

        Also after a release whose caller was cancelled. Raises StorageError: it is still released; try again.
        """
        await self.resume_partitions([uid])

    async def resume_partitions(self, uids: Sequence[int]) -> None:
        """As resume_partition, of many. Those that serve already are passed over."""
        partitions = [self._logs.partition(uid) for uid in uids]
        moves = self._tasks.shielded_of(partitions)
        if moves:
            await asyncio.wait(moves)
        released = [(one, self._released[one]) for one in partitions if one in self._released]
        await self._tasks.shield(self._resume(released))

    async def adopt_partition(self, identity: PartitionIdentity, state: ReleasedPartition) -> PartitionLog:
        """As adopt_partitions, of one."""
        return (await self.adopt_partitions([(identity, state)]))[0]

    async def adopt_partitions(
        self, arrivals: Sequence[tuple[PartitionIdentity, ReleasedPartition]]
    ) -> list[PartitionLog]:
        """Open what another shard has released, under each identity's new term, and journal it.

        Returns when that is synced. Nothing is served, and nothing is written to the partitions' files, before
        activate_partition. The move's event must be refused when this shard's process has ended since.

        Raises:
            StorageError: nothing of them is here, as after ShardLog.forget_partition.
        """
        return await self._tasks.shield(_adopt(self._logs, arrivals))

    def activate_partition(self, uid: int) -> None:
        """Metadata has recorded the move: serve the adopted partition.

        Raises KeyError when none of that uid is here, NotOwnerError when it has not been adopted, but is leaving.
        """
        partition = self._logs.partition(uid)
        if self._tasks.shielded_of([partition]) or partition in self._released:
            assert partition.refusal is not None
            raise partition.refusal
        self._logs.open_partition(partition)

    async def _release(self, partitions: Sequence[PartitionLog]) -> list[ReleasedPartition]:
        """Changes are refused already."""
        try:
            await _empty(self._logs, partitions)
        except BaseException:
            for partition in partitions:
                partition.refusal = None
            raise
        states = [_state_of(self._logs, partition) for partition in partitions]
        for partition, state in zip(partitions, states, strict=True):
            self._released[partition] = state
            self._logs.shut_partition(partition)
        await _each(PartitionLog.close_files, partitions)
        return states

    async def _resume(self, released: Sequence[tuple[PartitionLog, ReleasedPartition]]) -> None:
        async def open_again(one: tuple[PartitionLog, ReleasedPartition]) -> None:
            partition, state = one
            if state.position:
                await _open(self._logs, partition, state)
            self._released.pop(partition, None)
            self._logs.open_partition(partition)

        await _each(open_again, released)


def _refuse_changes(logs: MovingLogs, partitions: Sequence[PartitionLog]) -> None:
    """The first step of a release. Raises what keeps one of them from leaving; then all serve on."""
    for partition in partitions:
        refusal = logs.failed or partition.refusal or partition.fenced
        if refusal is not None:
            raise refusal
    for partition in partitions:
        partition.refusal = NotOwnerError(f"partition {partition.uid} moves to another shard")


async def _empty(logs: MovingLogs, partitions: Sequence[PartitionLog]) -> None:
    """Nothing waits, nothing is in memory only, nobody deletes segments, and the files hold just what counts."""
    await logs.drain(set(partitions))
    await logs.flush_partitions([one for one in partitions if not one.is_flushed])
    await _each(_settle(logs), partitions)
    for partition in partitions:
        refusal = logs.failed or partition.fenced
        if refusal is not None:
            raise refusal


def _settle(logs: MovingLogs) -> Callable[[PartitionLog], Awaitable[None]]:
    async def settle(partition: PartitionLog) -> None:
        await partition.end_removals()
        await partition.trim()
        await logs.save_indexes(partition)

    return settle


def _state_of(logs: MovingLogs, partition: PartitionLog) -> ReleasedPartition:
    assert partition.is_flushed and partition.is_drained
    end = partition.hint() or fmt.Hint(0, 0, partition.next_offset, partition.last_timestamp, partition.next_offset)
    offsets = logs.offsets.of_partition(partition.uid)
    place = (end.segment_base, end.position, end.next_offset, end.last_timestamp)
    return ReleasedPartition(partition.uid, *place, offsets)


async def _adopt(
    logs: MovingLogs, arrivals: Sequence[tuple[PartitionIdentity, ReleasedPartition]]
) -> list[PartitionLog]:
    """See PartitionMoves.adopt_partitions."""

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


def _begin_arrival(logs: MovingLogs, partition: PartitionLog, state: ReleasedPartition) -> None:
    """Its offsets are here before its adoption is in the journal: a snapshot that covers the one has the others."""
    reason = NotOwnerError(f"partition {partition.uid} has not moved here yet")
    partition.refusal = partition.closed = reason
    partition.closed_hint = state.hint if state.position else None
    partition.last_timestamp = state.last_timestamp
    logs.offsets.place(partition.uid, state.offsets)
    logs.offsets.close_partition(partition.uid, reason)


async def _open(logs: MovingLogs, partition: PartitionLog, state: ReleasedPartition) -> None:
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
