"""Out of read-only mode: all that a shard replayed into memory goes into segments, and a new journal takes its place.

Done on a shard that serves reads meanwhile. A crash at any step leaves the former journal, or none and nothing that
was only there; the next start is an ordinary one. Decided in docs/durability.md, "A broken device".
"""

from __future__ import annotations

import contextlib
import os

from shardserver.errors import StorageError
from shardserver.storage import offsets as snapshot
from shardserver.storage import segment as seg
from shardserver.storage.directory import rename_synced
from shardserver.storage.journal import build_journal
from shardserver.storage.journal_format import BLOCK_BYTES, Hint
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import sync_directory_noted


async def replace_journal(logs: ShardLog, *, keep: str | None = None) -> None:
    """Raises StorageError while the device still refuses. After success the process ends: a start finds all synced.

    keep: where the former journal goes, in a directory that is there; None: it is removed.
    """
    disk, faults, settings = logs.resources.disk, logs.resources.faults, logs.resources.settings
    # The ring first: writing it whole is the proof that the device takes writes and syncs again.
    journal_id = await build_journal(disk, faults, logs.directory, settings)
    for partition in logs.partitions:
        if partition.set_aside is None:
            await _make_durable(partition)
    terms = {one.uid: one.identity.term for one in logs.partitions}
    raw = snapshot.encode_snapshot(logs.offsets.of_partitions(set(terms)), terms, journal_id, 0)
    await snapshot.write_snapshot(disk, faults, logs.directory, raw)
    await _swap(logs, keep)


async def _make_durable(partition: PartitionLog) -> None:
    """The active segment's bytes once more, synced (storage rule 16); what only the journal held in a new segment."""
    if partition.segments:
        active = partition.segments[-1]
        start = Hint(active.base_offset, BLOCK_BYTES, active.base_offset, active.previous_timestamp, 0)
        await seg.scan_segment(partition.resources.disk, active, start, rewrite=partition.resources.faults)
    partition.roll_at_next_run()
    await partition.flush()


async def _swap(logs: ShardLog, keep: str | None) -> None:
    disk, faults = logs.resources.disk, logs.resources.faults
    since = faults.number
    former, target = os.path.join(logs.directory, "journal.broken"), os.path.join(logs.directory, "journal")
    if "journal" in await disk.list_directory(logs.directory):  # else a try before this one has come so far
        await _remove(logs, former)  # left by a crash
        await rename_synced(disk, faults, target, former)
    await rename_synced(disk, faults, os.path.join(logs.directory, "journal.new"), target)
    if keep is None:
        await _remove(logs, former)
        return
    await disk.rename(former, keep)
    await sync_directory_noted(disk, faults, os.path.dirname(keep), since)
    await sync_directory_noted(disk, faults, logs.directory, since)


async def _remove(logs: ShardLog, directory: str) -> None:
    """Of no use any more, and no reason to fail."""
    disk = logs.resources.disk
    with contextlib.suppress(StorageError):
        for name in await disk.list_directory(directory):
            await disk.unlink(os.path.join(directory, name))
        await disk.remove_directory(directory)
