"""All logs of one shard: its partitions, their one journal, and their committed offsets.

Its turns, and what is done for each journal write, are those of its base (shard_turn.pyx).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from shardserver.errors import DiskFullError, NotOwnerError, StorageError
from shardserver.memory.arena import Block
from shardserver.memory.arena_python import ArenaStatistics
from shardserver.memory.buffers import Buffer
from shardserver.storage import offsets as snapshot
from shardserver.storage.bulk_runs import BulkRuns
from shardserver.storage.cut_offsets import CutOffsets
from shardserver.storage.flush import BackgroundFlush, PartitionFlusher
from shardserver.storage.handover import Adoption, PartitionMoves
from shardserver.storage.journal import JournalStatistics
from shardserver.storage.journal_growth import JournalGrowth
from shardserver.storage.journal_pins import JournalPins
from shardserver.storage.log_tasks import LogTasks
from shardserver.storage.partition_directory import partition_directory, remove_partition_directory
from shardserver.storage.partition_log import INDEX_WORTH_BYTES, PartitionLog
from shardserver.storage.reserve import Reserve
from shardserver.storage.resources import LogResources
from shardserver.storage.retention import Retention
from shardserver.storage.segment import Segment
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.shard_turn import ShardTurn, WriteContent
from shardserver.storage.tail_room import TailRoom
from shardserver.storage.write_records import WriteRecords

log = logging.getLogger(__name__)

DRAIN_LOOK_S = 1.0
# Each writes to a page of its own, and a core knows the places of 1,536 to 3,072 pages.
MANY_PARTITIONS = 2048


@dataclass(frozen=True, slots=True)
class ShardLogStatistics:
    journal: JournalStatistics
    partitions: int
    tail_bytes: int
    flushes: int
    committed_offsets: int
    recovery_bytes: int
    skipped_messages: int
    memory: ArenaStatistics


class ShardLog(ShardTurn):
    """Owned by one shard. `on_failure` is told when the journal is broken: the shard must end and recover."""

    def __init__(
        self,
        resources: LogResources,
        data_directory: str,
        shard: int,
        on_failure: Callable[[StorageError], None],
        reserve: Reserve,
    ) -> None:
        super().__init__(resources, shard)
        self._reserve, self._on_failure = reserve, on_failure
        self._disk, self._settings = resources.disk, resources.settings
        self.directory = os.path.join(data_directory, "shards", str(shard))
        self.partitions_directory = os.path.join(data_directory, "partitions")
        self.journal_id = 0
        self.recovery_bytes = 0
        self._snapshot_order = asyncio.Lock()
        self._started = self._closing = False
        self._cut_offsets: CutOffsets | None = None
        self._published = asyncio.Event()  # a journal write has ended
        self._progress = asyncio.Event()  # a write or a run has ended, well or not
        self._tasks = LogTasks(self._fail)
        self.moves = PartitionMoves(self, self._tasks)
        self._background = BackgroundFlush(self._tasks, shard, self._settings.retry_s, self._schedule_turn)
        self._flusher = PartitionFlusher(resources, self._note_run, self._progress.set)
        self._pins = JournalPins(self._pinned)
        self._records = WriteRecords(shard, self.serves)
        self._bulk = BulkRuns(resources, self._turn, self._tasks, self._end_bulk)
        self._room = TailRoom(resources, self._turn, lambda: self._start_flush(self._flush_pinned))
        files = self._settings.journal_files
        self._growth = JournalGrowth(self._tasks, self._partitions, shard, self.directory, files)
        self.retention = Retention(self, self.offsets, resources.clock, resources.settings.retention)

    # Partitions

    def partition(self, uid: int) -> PartitionLog:
        """The log of a partition. Raises KeyError when this shard has none of that uid."""
        return self._partitions[uid]

    def find_partition(self, uid: int) -> PartitionLog | None:
        return self._partitions.get(uid)

    @property
    def partitions(self) -> Iterable[PartitionLog]:
        return self._partitions.values()

    def create_partition(self, identity: PartitionIdentity) -> PartitionLog:
        """A new, empty log. It takes no disk space before its first flush or direct run."""
        created = self._add_partition(identity)
        if self._started:
            self._growth.start_if_due(self.journal)
        return created

    def _add_partition(self, identity: PartitionIdentity) -> PartitionLog:
        directory = partition_directory(self.partitions_directory, identity.uid)
        created = PartitionLog(self.resources, directory, identity, self._turn)
        created.is_served = True
        self._partitions[identity.uid] = created
        self._note_partitions()
        return created

    def _note_partitions(self) -> None:
        self.resources.memory.is_scattered = len(self._partitions) > MANY_PARTITIONS

    def serves(self, partition: PartitionLog) -> bool:
        """It was not forgotten. A partition that came back has another log of the same uid."""
        return self._partitions.get(partition.uid) is partition

    def forget_partition(self, uid: int) -> None:
        """Stop serving a partition whose deletion, or move, metadata has recorded, or whose adoption was given up.

        Its waiting appends are refused. Its files stay; those that are open are closed off the loop.
        """
        gone = self._partitions.pop(uid, None)
        if gone is None:
            return
        self._note_partitions()
        gone.fence(NotOwnerError(f"partition {uid} is not here any more"))  # who asks again is told what there is now
        self.moves.forget(gone)
        self._pins.unpin(gone)
        self._turn.forget(gone)
        self._hints.pop(uid, None)
        self.offsets.forget_partition(uid)
        self._tasks.start(self._close_forgotten(gone))
        self._progress.set()

    async def _close_forgotten(self, partition: PartitionLog) -> None:
        await partition.end_run()
        await self._room.let_go(partition.drop_tail())
        await partition.close_files()

    async def remove_files(self, uid: int) -> None:
        """Remove the directory of a dead partition; one that is gone already is fine."""
        await self.wait_idle()
        directory = partition_directory(self.partitions_directory, uid)
        await remove_partition_directory(self._disk, self.resources.faults, directory)

    async def wait_idle(self) -> None:
        """Wait for the background tasks that are running now."""
        await self._tasks.wait_idle()

    # What a turn does beside journal writes

    def _start_runs(self) -> None:
        self._bulk.start()

    def _end_bulk(self, partition: PartitionLog) -> None:
        self._note_run(partition)
        self._evict_after_runs()

    def _note_run(self, partition: PartitionLog) -> None:
        self._pins.unpin(partition)
        sequence = partition.oldest_unflushed_sequence()
        if self.serves(partition):
            if sequence:
                self._pin(partition, sequence)
            self._hints[partition.uid] = partition
            self._linger_turn()
            for segment in partition.indexes_due():
                saving = self._tasks.start(self._save_index(partition, segment))
                partition.index_saves.add(saving)
                saving.add_done_callback(partition.index_saves.discard)

    def _evict_after_runs(self) -> None:
        self._room.evict_after_runs()
        self._progress.set()

    async def _save_index(self, partition: PartitionLog, segment: Segment) -> None:
        try:
            await partition.save_index(segment)
        except StorageError as error:  # a hint: without it the next start reads more
            log.warning("index_not_saved", extra={"fields": {"path": segment.path, "error": str(error)}})

    def _refuse_when_full(self) -> None:
        """The ring takes no more: wait for the flush that frees it, or refuse while the disk has no room for that."""
        self._start_flush(self._free_files)
        if self._background.error is not None:
            for partition in self._turn.dirty_logs():
                partition.fail_waiting(self._background.error)
            self.offsets.refuse_waiting(self._background.error)
            self._refuse_adoptions(self._background.error)
            self._progress.set()

    def _add_adoptions(self, content: WriteContent) -> None:
        if self._adoptions:  # what they reset in a snapshot has to stay reset, with offsets or without
            self._uncovered_offsets = self._uncovered_offsets or self.journal.sequence
        self._records.add_adoptions(self.journal.staging, self._adoptions, content.adoptions)

    def _add_offsets(self, content: WriteContent) -> None:
        if self._records.add_offsets(self.journal.staging, self.offsets, content.offsets):
            self._uncovered_offsets = self._uncovered_offsets or self.journal.sequence

    def _note_progress(self) -> None:
        self._published.set()
        self._progress.set()

    def _plan_flush(self) -> None:
        """In half of the arena is room for what the journal alone holds: at worst that takes 8/5 as much there."""
        self.journal.plan_flush(self._pins.oldest_share(), self.resources.memory.bytes // 2)

    def _free_journal(self) -> None:
        self._start_flush(self._free_files)

    def _fail(self, error: StorageError) -> None:
        """A failed journal write or sync proves nothing about what came before it: end, and let recovery look."""
        if self.failed is None:
            self.failed = error
            self._growth.stop()
            log.critical("journal_failed", extra={"fields": {"shard": self._shard, "error": str(error)}})
            for partition in self._partitions.values():
                partition.fence(error)
            self.offsets.refuse_waiting(error)
            self._refuse_adoptions(error)
            self._note_progress()
            self._on_failure(error)

    # Freeing journal files

    def _pin(self, partition: PartitionLog, sequence: int) -> None:
        self._pins.pin(partition, sequence)

    def _start_flush(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if not self._is_over():
            self._background.start(work)

    async def _free_files(self) -> None:
        await self._growth.have_file(self.journal)
        while self.journal.is_flush_due and self.failed is None:
            oldest = self._oldest_live()
            if oldest < self.journal.sequence:
                await self._flush_through(oldest)
            elif oldest <= self.journal.published_oldest_live:
                break
            await self._publish()  # a full ring takes no other write that would say it of what direct runs have moved
            self._plan_flush()

    async def _flush_pinned(self) -> None:
        """Into segments with all that only the journal holds: what is there can be dropped from memory."""
        await self.flush_partitions(self._pins.all())

    async def _flush_through(self, sequence: int) -> None:
        """Move everything that the file of that sequence, or an older one, still holds."""
        await self.flush_partitions(self._pins.through(sequence))
        if self._uncovered_offsets and self._uncovered_offsets <= sequence:
            await self._snapshot_offsets()

    async def flush_partitions(self, partitions: list[PartitionLog]) -> None:
        """Move all that is acknowledged into segments, synced. Raises StorageError; those that could be are flushed."""
        error = await self._flusher.flush(partitions)
        self._evict_after_runs()
        if error is not None:
            raise error

    async def _snapshot_offsets(self) -> None:
        async with self._snapshot_order:  # a start and a flush may both want one, and its file is built under one name
            await self._make_snapshot()

    async def _make_snapshot(self) -> None:
        """Records of files before `covered` are in the snapshot; those of `covered` itself are replayed once more."""
        covered = self.journal.sequence
        terms = {uid: one.identity.term for uid, one in self._partitions.items()}
        raw = snapshot.encode_snapshot(self.offsets.of_partitions(set(terms)), terms, self.journal_id, covered)
        faults = self.resources.faults
        await self._reserve.with_room(lambda: snapshot.write_snapshot(self._disk, faults, self.directory, raw))
        # Only now: a journal write made meanwhile may not say that the older records are needed no more.
        self._uncovered_offsets = covered

    def _watch(self, event: asyncio.Event) -> None:
        """Have it set by the next journal write that ends."""
        event.clear()
        self._is_watched = True

    async def _publish(self) -> None:
        """Have a synced write say which files are free. Returns when one more write has completed."""
        self._watch(self._published)
        self._force_write = True
        self._schedule_turn()
        await self._published.wait()

    # Partitions that leave and arrive (handover.py)

    def add_arriving(self, identity: PartitionIdentity) -> PartitionLog:
        """A log that neither serves nor says anything of itself yet. Raises StorageError: one of this uid is here."""
        if self.failed is not None:
            raise self.failed
        if identity.uid in self._partitions:
            raise StorageError(f"partition {identity.uid} is here already")
        return self._add_partition(identity)

    async def drain(self, partitions: set[PartitionLog]) -> None:
        """Until all replies that hang on them were given. Raises StorageError when one is fenced."""
        while True:
            for one in partitions:
                if one.fenced is not None:
                    raise one.fenced
                one.hurry()
            if self._closing:
                raise StorageError("the shard ends")
            busy = self._in_flight
            if busy is not None and not any(record.partition in partitions for record in busy.offsets):
                busy = None
            if busy is None and all(one.is_drained for one in partitions) and not self.offsets.awaits(partitions):
                return
            self._watch(self._progress)
            with contextlib.suppress(TimeoutError):  # who fences a partition from outside tells nobody
                async with asyncio.timeout(DRAIN_LOOK_S):  # wait_for may swallow a cancellation
                    await self._progress.wait()

    def shut_partition(self, partition: PartitionLog) -> None:
        """No reads any more. Its offsets stay in snapshots until it is forgotten."""
        self._turn.drop_cached(partition)
        reason, tail = partition.shut()
        self.offsets.close_partition(partition.uid, reason)
        self._tasks.start(self._room.let_go(tail))

    def open_partition(self, partition: PartitionLog) -> None:
        partition.open_again()
        self.offsets.open_partition(partition.uid)

    def give_up_arrival(self, partition: PartitionLog) -> None:
        if self.serves(partition):
            self.forget_partition(partition.uid)

    async def save_indexes(self, partition: PartitionLog) -> None:
        """Those that are worth a file: the next owner need not read the segments for them."""
        for segment in partition.indexes_due(INDEX_WORTH_BYTES):
            await self._save_index(partition, segment)

    async def journal_adoptions(self, adoptions: list[Adoption]) -> None:
        """Have them journaled, with their offsets; returns when all is synced."""
        self._adoptions.extend(adoptions)
        self._schedule_turn()
        self._growth.start_if_due(self.journal)
        for adoption in adoptions:
            await adoption.done

    def _refuse_adoptions(self, error: StorageError, adoptions: Iterable[Adoption] | None = None) -> None:
        for adoption in self._adoptions if adoptions is None else adoptions:
            adoption.refuse(error)
        if adoptions is None:
            self._adoptions.clear()

    # The arena and the tail's budget

    def copy_batch(self, batch: Buffer) -> Block:
        """The batch in the shard's memory, for PartitionLog.append. What is cached only makes room for it.

        Raises ArenaFullError: all that is there is needed. What only the journal holds is being flushed.
        """
        return self._room.copy(batch)

    # What recovery hands over

    def adopt_tail(self, partition: PartitionLog) -> None:
        """Hang the partition to the journal file that holds its oldest replayed bytes."""
        sequence = partition.oldest_unflushed_sequence()
        if sequence and not partition.pinned_sequence:
            self._pin(partition, sequence)

    def adopt_offsets(self, found: dict[snapshot.OffsetKey, int], *, oldest_sequence: int) -> None:
        self._uncovered_offsets = oldest_sequence
        for key, offset in found.items():
            self.offsets.adopt(self._partitions[key[0]], key, offset)

    async def start(self, *, needs_flush: bool) -> None:
        """Serve. With too few free journal files, flush first: the first write then frees the others at once.

        Raises StorageError; a full disk is no reason not to serve: what replay put into memory can be read.
        """
        self._started = True
        full: DiskFullError | None = None
        if needs_flush:
            try:
                await self._growth.have_file(self.journal)
                await self._flush_pinned()
                await self._snapshot_offsets()
            except DiskFullError as error:
                log.warning("flush_failed", extra={"fields": {"shard": self._shard, "error": str(error)}})
                full = error
        self._cut_offsets = CutOffsets(self.offsets, self.resources, self._publish, self._is_over)
        await self._cut_offsets.begin(full)
        self._growth.start_if_due(self.journal)

    def _is_over(self) -> bool:
        return self.failed is not None or self._closing

    def become_read_only(self) -> None:
        """Serve what recovery found, write nothing (docs/durability.md, "A broken device")."""
        error = StorageError("the shard is read-only: its device did not take the writes of its recovery")
        self.failed = self.resources.admission.refusal = self.offsets.refusal = error

    # Retention (retention.py)

    async def roll(self, partition: PartitionLog) -> bool:
        """Flush what is acknowledged and seal the segment that holds it. False: there was nothing to seal.

        Raises StorageError.
        """
        return await self._tasks.shield(self._roll(partition))

    async def _roll(self, partition: PartitionLog) -> bool:
        if self._closing or not self.serves(partition):
            return False
        await self.flush_partitions([partition])
        rolled = await partition.roll()
        self._note_run(partition)
        return rolled

    @property
    def segments_bytes(self) -> int:
        return sum(one.segments_bytes for one in self._partitions.values())

    async def close(self) -> None:
        """Flush everything and say so in a last write, so that the next start replays nothing."""
        if self.failed is None:
            await self._drain()
        self._closing = True
        self._growth.stop()
        self._refuse_adoptions(StorageError("the shard ends"))
        self._note_progress()
        if self._cut_offsets is not None:
            await self._cut_offsets.end()
        await self._tasks.end_shielded()
        self._stop_linger()
        await self.wait_idle()
        if self.failed is None:
            await self._write_clean_end()
            await self.wait_idle()  # its runs may have begun to save indexes
        for partition in self._partitions.values():
            for segment in partition.indexes_due(INDEX_WORTH_BYTES) if self.failed is None else ():
                await self._save_index(partition, segment)
            await partition.close()
        await self.journal.close()

    async def _drain(self) -> None:
        """Until nothing waits any more; a partition that cannot be written is given up after one failed try."""
        while self.failed is None and any(one.has_work for one in self._partitions.values()):
            self._turn.mark_late()
            self._schedule_turn()
            self._watch(self._published)
            waits = {asyncio.ensure_future(self._published.wait())}
            await asyncio.wait([*waits, *self._tasks.running], return_when=asyncio.FIRST_COMPLETED, timeout=1.0)
            for wait in waits:
                wait.cancel()
            if self._background.error is not None:
                return

    async def _write_clean_end(self) -> None:
        ever_wrote = any(one.flushed_end or one.next_offset for one in self._partitions.values())
        if not ever_wrote and not self.offsets.waiting:
            return
        try:
            await self.flush_partitions(list(self._partitions.values()))
            if self._uncovered_offsets or self.offsets.waiting:
                await self._snapshot_offsets()
        except StorageError as error:
            log.warning("flush_failed", extra={"fields": {"shard": self._shard, "error": str(error)}})
            return
        await self._write_last_checkpoint()

    async def _write_last_checkpoint(self) -> None:
        """The checkpoint may take several writes; only the last one says that the stop was clean.

        Offsets that wait go with them though the snapshot has them: an older record of this file is replayed over it.
        """
        self._checkpoint_started = 0
        self._stop_linger()
        while self.failed is None and self.journal.begin():
            content = self._fill()
            self._uncovered_offsets = self._uncovered_offsets if not content.checkpoint_sequence else 0
            done = not self._checkpoint and not self.offsets.waiting
            if done:
                self._checkpoint_sequence = self.journal.sequence
            self._watch(self._published)
            self._submit(content, done)
            await self._published.wait()
            if done:
                return

    def statistics(self) -> ShardLogStatistics:
        return ShardLogStatistics(
            self.journal.statistics(),
            len(self._partitions),
            self._turn.tails.bytes,
            self._flusher.runs,
            len(self.offsets),
            self.recovery_bytes,
            sum(one.reader.skipped_messages for one in self._partitions.values()),
            self.resources.memory.statistics(),
        )
