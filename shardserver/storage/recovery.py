"""Bringing one shard's logs back: journal, segments, committed offsets (docs/durability.md, "Recovery")."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shardserver.errors import CorruptionError, StorageError
from shardserver.memory.arena import Arena
from shardserver.memory.heap import heap_arena
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import journal_format as fmt
from shardserver.storage import offsets as snapshot
from shardserver.storage.directory import make_synced_directory, sync_directories_noted
from shardserver.storage.disk import Disk
from shardserver.storage.journal import create_journal
from shardserver.storage.journal_reader import JournalRecovery, RecoveredFile, RingOpener, open_journal
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.partition_recovery import recover_partition
from shardserver.storage.reserve import Reserve
from shardserver.storage.resources import Hooks, LogResources
from shardserver.storage.segment_reader import ParkedWalks, SegmentFiles
from shardserver.storage.settings import LogSettings, PartitionIdentity, least_arena_bytes
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RecoveryProgress:
    """How far a recovery is; the caller keeps it and looks at it. Bytes to scan in segments are known last."""

    read_bytes: int = 0
    journal_bytes: int = 0
    journal_is_read: bool = False
    partitions_done: int = 0
    partitions: int = 0

    def share(self) -> float:
        """Of the whole, 0 to 1: an estimate. The journal first, then the partitions."""
        if not self.journal_is_read:
            return 0.5 * min(1.0, self.read_bytes / self.journal_bytes) if self.journal_bytes else 0.0
        return 0.5 + 0.5 * self.partitions_done / max(1, self.partitions)


@dataclass(slots=True)
class RecoveryInput:
    """What metadata says is alive. next_uid: no record may carry this uid or a greater one.

    memory: the shard's arena; without one the logs make one of their own.
    read_only: write nothing, not even what would make the recovered bytes durable; the logs take no appends then.
    answers_are_known: False after a death that others have survived: they may ask again for what it did not answer.
    open_ring: a repair gives one that passes over damage.
    """

    shard: int
    next_uid: int
    identities: Iterable[PartitionIdentity]
    terms: dict[int, int] = field(default_factory=dict)
    faults: SyncFaults = field(default_factory=SyncFaults)
    read_only: bool = False
    reserve: Reserve | None = None
    progress: RecoveryProgress = field(default_factory=RecoveryProgress)
    memory: Arena | None = None
    answers_are_known: bool = True
    open_ring: RingOpener = open_journal


async def recover_shard(
    disk: Disk,
    data_directory: str,
    settings: LogSettings,
    metadata: RecoveryInput,
    clock: Callable[[], int],
    on_failure: Callable[[StorageError], None],
) -> ShardLog:
    """Open or create the logs of one shard. Everything that it then serves is durable.

    Raises:
        CorruptionError: the journal is damaged before its tail, or names partitions that metadata never made.
        StorageError: the disk failed.
    """
    began_us = clock()
    files, walks = SegmentFiles(disk, settings.open_segments), ParkedWalks(settings.read_ahead_walks)
    memory = metadata.memory or heap_arena(least_arena_bytes(settings))
    hooks = Hooks(answers_are_known=metadata.answers_are_known)
    resources = LogResources(disk, settings, clock, metadata.faults, files, walks, hooks=hooks, memory=memory)
    reserve = metadata.reserve or Reserve(disk, os.path.join(data_directory, "reserve"), 0)
    logs = ShardLog(resources, data_directory, metadata.shard, on_failure, reserve)
    directory, progress = os.path.join(logs.directory, "journal"), metadata.progress
    if not metadata.read_only:
        await _make_directories(disk, data_directory, logs)
        if "journal" not in await disk.list_directory(logs.directory):
            await create_journal(disk, metadata.faults, logs.directory, settings)
    ring = await metadata.open_ring(
        disk,
        directory,
        settings,
        metadata.faults,
        lambda read_bytes: _note_journal(progress, read_bytes + logs.recovery_bytes),
        read_only=metadata.read_only,
    )
    logs.journal, logs.journal_id = ring.journal, ring.journal.journal_id
    for identity in metadata.identities:
        logs.create_partition(identity)
        metadata.terms[identity.uid] = identity.term
    progress.journal_bytes = ring.expected_bytes
    found = await _read_journal(ring, metadata)
    progress.journal_is_read = True
    await _recover_partitions(logs, found.hints, metadata)
    if not metadata.read_only:
        await _sync_names(logs, directory)
    async for one in ring.files(found.first_needed(logs)):
        _replay_batches(logs, one, metadata, found)
    for partition in logs.partitions:
        partition.recovered_end = partition.next_offset
    logs.recovery_bytes += ring.read_bytes
    await _recover_offsets(disk, logs, ring, found, metadata)
    if metadata.read_only:
        logs.become_read_only()
    else:
        await logs.start(needs_flush=ring.journal.free_files < 2)
    seconds = (clock() - began_us) / 1e6
    fields = {"shard": metadata.shard, "seconds": seconds, "bytes": logs.recovery_bytes, "clean": ring.clean}
    log.info("recovered", extra={"fields": fields | {"read_only": metadata.read_only}})
    return logs


async def _make_directories(disk: Disk, data_directory: str, logs: ShardLog) -> None:
    faults = logs.resources.faults
    since = faults.number
    # Not anew: other shards start beside this one. The server has made and synced both before its shards.
    for directory in (os.path.join(data_directory, "shards"), logs.partitions_directory):
        await disk.make_directory(directory)
    # Of partitions too: a process may have died between making a partition's directory and syncing its name.
    for directory in (logs.partitions_directory, data_directory):
        await sync_directory_noted(disk, faults, directory, since)
    await make_synced_directory(disk, faults, logs.directory)


async def _sync_names(logs: ShardLog, journal_directory: str) -> None:
    """Of the files that recovery relies on, and of those that are gone: who died may not have come so far."""
    directories = [one.directory for one in logs.partitions if one.directory_exists]
    resources = logs.resources
    await sync_directories_noted(resources.disk, resources.faults, [logs.directory, journal_directory, *directories])


# Of a record: its file's sequence, its write's position in the file, its number in the write.
Place = tuple[int, int, int]


def _records(one: RecoveredFile, metadata: RecoveryInput) -> Iterable[tuple[Place, fmt.Record]]:
    """The records that count: uid, term and shard equal metadata's present ones (storage rule 12).

    Those before the newest adoption of their partition do not, but that is known only when all have been read.
    """
    for write in one.writes:
        raw = one.buffer[write.position : write.position + write.length]
        for number, record in enumerate(fmt.decode_records(raw, write, one.journal_file.path)):
            if record.uid >= metadata.next_uid:
                path = one.journal_file.path
                raise CorruptionError(
                    path, write.position, f"partition uids below {metadata.next_uid}: metadata was lost"
                )
            if metadata.terms.get(record.uid) == record.term and record.shard == metadata.shard:
                yield (one.sequence, write.position, number), record


@dataclass(slots=True)
class Found:
    """What the live files say beside batches, the newest of each.

    offsets: (the file's sequence, None for a deletion) of each key, by uid. batch_ends: by uid, then by the
    journal file's sequence. adoptions: places of the newest ones; what stands before them is forgotten.
    """

    hints: dict[int, fmt.Hint] = field(default_factory=dict)
    offsets: dict[int, dict[snapshot.OffsetKey, tuple[int, int | None]]] = field(default_factory=dict)
    batch_ends: dict[int, dict[int, int]] = field(default_factory=dict)
    adoptions: dict[int, Place] = field(default_factory=dict)

    def take(self, place: Place, record: fmt.Record) -> None:
        uid = record.uid
        if record.kind == fmt.KIND_HINT:
            self.hints[uid] = fmt.Hint.decode(record.payload)
        elif record.kind == fmt.KIND_BATCH:
            header = read_batch_header(record.payload)
            self.batch_ends.setdefault(uid, {})[place[0]] = header.base_offset + header.message_count
        elif record.kind == fmt.KIND_OFFSET:
            kind, consumer, offset = fmt.decode_offset(record.payload)
            gone = record.flags & fmt.RECORD_TOMBSTONE
            self.offsets.setdefault(uid, {})[uid, kind, consumer] = (place[0], None if gone else offset)
        elif record.kind == fmt.KIND_ADOPTION:
            self._take_adoption(place, uid, fmt.Hint.decode(record.payload))

    def _take_adoption(self, place: Place, uid: int, hint: fmt.Hint) -> None:
        self.adoptions[uid] = place
        self.offsets.pop(uid, None)
        self.hints.pop(uid, None)
        self.batch_ends.pop(uid, None)
        if hint.position:
            self.hints[uid] = hint

    def counts(self, place: Place, uid: int) -> bool:
        return uid not in self.adoptions or place > self.adoptions[uid]

    def first_needed(self, logs: ShardLog) -> int:
        """The oldest file with a batch that no segment holds; a sequence above all when there is none."""
        missing = []
        for uid, ends in self.batch_ends.items():
            known = logs.partition(uid).next_offset
            missing += [sequence for sequence, end in ends.items() if end > known]
        return min(missing, default=1 << 64)


async def _read_journal(ring: JournalRecovery, metadata: RecoveryInput) -> Found:
    """The whole live part once, so that damage is refused before anything is touched."""
    found = Found()
    async for one in ring.files():
        for place, record in _records(one, metadata):
            found.take(place, record)
    return found


def _note_journal(progress: RecoveryProgress, read_bytes: int) -> None:
    progress.read_bytes = read_bytes


async def _recover_partitions(logs: ShardLog, hints: dict[int, fmt.Hint], metadata: RecoveryInput) -> None:
    progress = metadata.progress
    progress.partitions = len(metadata.terms)
    for partition in logs.partitions:
        try:
            hint = hints.get(partition.uid)
            partition.answered_offset = 0 if hint is None else hint.answered_offset
            read_bytes = await recover_partition(partition, hint, read_only=metadata.read_only)
            logs.recovery_bytes += read_bytes
            progress.read_bytes += read_bytes
        except StorageError as error:
            _set_aside(partition, error)
        progress.partitions_done += 1


def _replay_batches(logs: ShardLog, one: RecoveredFile, metadata: RecoveryInput, found: Found) -> None:
    for place, record in _records(one, metadata):
        partition = logs.partition(record.uid)
        if record.kind != fmt.KIND_BATCH or partition.fenced is not None or not found.counts(place, record.uid):
            continue
        header = read_batch_header(record.payload)
        try:
            partition.replay(
                record.payload, header.base_offset, header.message_count, header.base_timestamp, one.sequence
            )
            logs.adopt_tail(partition)
        except CorruptionError as error:
            _set_aside(partition, error)


def _set_aside(partition: PartitionLog, error: StorageError) -> None:
    fields = {"partition": partition.uid, "next_offset": partition.next_offset, "error": str(error)}
    log.error("partition_set_aside", extra={"fields": fields})
    partition.set_aside = error
    partition.fence(StorageError(str(error)))  # an append is not what is damaged


async def _recover_offsets(
    disk: Disk, logs: ShardLog, ring: JournalRecovery, in_journal: Found, metadata: RecoveryInput
) -> None:
    """The snapshot, then the journal's records over it; what lies beyond a partition's end is cut to it."""
    entries, journal_id, covered = await snapshot.read_snapshot(disk, logs.directory)
    found = {key: offset for key, (term, offset) in entries.items() if metadata.terms.get(key[0]) == term}
    floor = covered if journal_id == logs.journal_id else 0
    reset = {uid for uid, place in in_journal.adoptions.items() if place[0] >= floor}
    found = {key: offset for key, offset in found.items() if key[0] not in reset}
    for offsets in in_journal.offsets.values():
        for key, (sequence, offset) in offsets.items():
            if sequence >= floor:
                found.pop(key, None)
                if offset is not None:
                    found[key] = offset
    logs.adopt_offsets(found, oldest_sequence=ring.oldest_sequence)
