"""Bringing one shard's logs back: journal, segments, committed offsets (docs/durability.md, "Recovery")."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shardserver.errors import CorruptionError, StorageError
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import journal_format as fmt
from shardserver.storage import offsets as snapshot
from shardserver.storage.disk import Disk
from shardserver.storage.journal import JournalRecovery, RecoveredFile, create_journal, open_journal
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.partition_recovery import recover_partition
from shardserver.storage.reserve import Reserve
from shardserver.storage.resources import LogResources
from shardserver.storage.segment_reader import SegmentFiles
from shardserver.storage.settings import LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RecoveryInput:
    """What metadata says is alive. next_uid: no record may carry this uid or a greater one.

    read_only: write nothing, not even what would make the recovered bytes durable; the logs take no appends then.
    """

    shard: int
    next_uid: int
    identities: Iterable[PartitionIdentity]
    terms: dict[int, int] = field(default_factory=dict)
    faults: SyncFaults = field(default_factory=SyncFaults)
    read_only: bool = False
    reserve: Reserve | None = None


async def recover_shard(
    disk: Disk,
    data_directory: str,
    settings: LogSettings,
    metadata: RecoveryInput,
    clock: Callable[[], int],
    on_failure: Callable[[StorageError], None],
    on_progress: Callable[[int], None] = lambda read_bytes: None,
) -> ShardLog:
    """Open or create the logs of one shard. Everything that it then serves is durable.

    Raises:
        CorruptionError: the journal is damaged before its tail, or names partitions that metadata never made.
        StorageError: the disk failed.
    """
    resources = LogResources(disk, settings, clock, metadata.faults, SegmentFiles(disk, settings.open_segments))
    reserve = metadata.reserve or Reserve(disk, os.path.join(data_directory, "reserve"), 0)
    logs = ShardLog(resources, data_directory, metadata.shard, on_failure, reserve)
    if not metadata.read_only:
        await _make_directories(disk, data_directory, logs)
        if "journal" not in await disk.list_directory(logs.directory):
            await create_journal(disk, logs.directory, settings)
    ring = await open_journal(
        disk, os.path.join(logs.directory, "journal"), settings, metadata.faults, read_only=metadata.read_only
    )
    logs.journal, logs.journal_id = ring.journal, ring.journal.journal_id
    logs.recovery_bytes = ring.read_bytes
    on_progress(logs.recovery_bytes)
    for identity in metadata.identities:
        logs.create_partition(identity)
        metadata.terms[identity.uid] = identity.term
    await _recover_partitions(logs, ring, metadata, on_progress)
    for one in ring.live:
        _replay_batches(logs, one, metadata)
    await _recover_offsets(disk, logs, ring, metadata)
    if metadata.read_only:
        logs.become_read_only()
    else:
        await logs.start(needs_flush=ring.journal.free_files < 2)
    fields = {"shard": metadata.shard, "bytes": logs.recovery_bytes, "clean": ring.clean}
    log.info("recovered", extra={"fields": fields | {"read_only": metadata.read_only}})
    return logs


async def _make_directories(disk: Disk, data_directory: str, logs: ShardLog) -> None:
    for directory in (os.path.join(data_directory, "shards"), logs.directory, logs.partitions_directory):
        await disk.make_directory(directory)
    await disk.sync_directory(os.path.join(data_directory, "shards"))
    await disk.sync_directory(data_directory)


def _records(one: RecoveredFile, metadata: RecoveryInput) -> Iterable[fmt.Record]:
    """The records that count: uid, term and shard equal metadata's present ones (storage rule 12)."""
    for write in one.writes:
        raw = one.buffer[write.position : write.position + write.length]
        for record in fmt.decode_records(raw, write):
            if record.uid >= metadata.next_uid:
                path = one.journal_file.path
                raise CorruptionError(
                    path, write.position, f"partition uids below {metadata.next_uid}: metadata was lost"
                )
            if metadata.terms.get(record.uid) == record.term and record.shard == metadata.shard:
                yield record


async def _recover_partitions(
    logs: ShardLog, ring: JournalRecovery, metadata: RecoveryInput, on_progress: Callable[[int], None]
) -> None:
    hints: dict[int, fmt.Hint] = {}
    for one in ring.live:
        for record in _records(one, metadata):
            if record.kind == fmt.KIND_HINT:
                hints[record.uid] = fmt.Hint.decode(record.payload)
    for partition in logs.partitions:
        try:
            hint = hints.get(partition.uid)
            logs.recovery_bytes += await recover_partition(partition, hint, read_only=metadata.read_only)
        except StorageError as error:
            _set_aside(partition, error)
        on_progress(logs.recovery_bytes)


def _replay_batches(logs: ShardLog, one: RecoveredFile, metadata: RecoveryInput) -> None:
    for record in _records(one, metadata):
        partition = logs.partition(record.uid)
        if record.kind != fmt.KIND_BATCH or partition.fenced is not None:
            continue
        header = read_batch_header(record.payload)
        try:
            before = partition.tail.bytes
            partition.replay(
                record.payload, header.base_offset, header.message_count, header.base_timestamp, one.sequence
            )
            logs.adopt_tail(partition, partition.tail.bytes - before)
        except CorruptionError as error:
            _set_aside(partition, error)


def _set_aside(partition: PartitionLog, error: StorageError) -> None:
    log.error("partition_set_aside", extra={"fields": {"partition": partition.uid, "error": str(error)}})
    partition.set_aside = error
    partition.fence(error)


async def _recover_offsets(disk: Disk, logs: ShardLog, ring: JournalRecovery, metadata: RecoveryInput) -> None:
    """The snapshot, then the journal's records in order; what lies beyond a partition's end is cut to it."""
    entries, journal_id, covered = await snapshot.read_snapshot(disk, logs.directory)
    found = {key: offset for key, (term, offset) in entries.items() if metadata.terms.get(key[0]) == term}
    floor = covered if journal_id == logs.journal_id else 0
    for one in ring.live:
        if one.sequence < floor:
            continue
        for record in _records(one, metadata):
            if record.kind == fmt.KIND_OFFSET:
                kind, consumer, offset = fmt.decode_offset(record.payload)
                key = (record.uid, kind, consumer)
                found.pop(key, None)
                if not record.flags & fmt.RECORD_TOMBSTONE:
                    found[key] = offset
    logs.adopt_offsets(found, oldest_sequence=min((one.sequence for one in ring.live), default=0))
