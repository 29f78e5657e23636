"""What a data directory still says of its metadata: the log up to its damage, identity files, records in journals."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import msgspec

from shardserver.admin.journal_check import Mention, check_journal, journal_directory, shard_numbers
from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_snapshot import Snapshot, decode_snapshot
from shardserver.core.partition_label import PartitionLabel, decode_label
from shardserver.errors import StorageError
from shardserver.storage.disk import Disk
from shardserver.storage.identity_file import NAME, read_identity
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.unknown_directories import PARTITION_NAME


@dataclass(slots=True)
class Sources:
    """snapshot: of the log up to its damage. labels: by uid, the one written last comes last. bare: uids without one.

    mentions: by uid, of the term that is highest. is_whole: the log has no damage.
    """

    snapshot: Snapshot = field(default_factory=lambda: Snapshot(Metadata(), []))
    is_whole: bool = False
    labels: dict[int, PartitionLabel] = field(default_factory=dict)
    bare: list[int] = field(default_factory=list)
    mentions: dict[int, Mention] = field(default_factory=dict)

    @property
    def newest_uid(self) -> int:
        told = [uid for label in self.labels.values() for uid in label.topic.partition_uids()]
        return max([*self.labels, *self.bare, *self.mentions, *told], default=0)


async def read_sources(disk: Disk, data: str) -> Sources:
    """Raises StorageError: the device does not read a directory."""
    found = Sources()
    await _read_log(found, disk, os.path.join(data, "metadata"))
    await _read_labels(found, disk, os.path.join(data, "partitions"))
    for shard in await shard_numbers(disk, data):
        if os.path.isdir(journal_directory(data, shard)):
            _take_mentions(found, (await check_journal(disk, journal_directory(data, shard), shard, {})).mentions)
    return found


async def _read_log(found: Sources, disk: Disk, directory: str) -> None:
    if not os.path.isdir(directory):
        return
    log = MetadataLog(disk, directory)
    try:
        snapshot, records = await log.replay(read_only=True, up_to_damage=True)
    except StorageError:
        return  # it has a name and no file that can be read
    finally:
        await log.close()
    found.is_whole = not log.has_damage
    try:
        if snapshot is not None:
            found.snapshot = decode_snapshot(snapshot)
        for raw in records:
            ev.apply_change(found.snapshot.metadata, ev.decode_change(raw))
    except (msgspec.DecodeError, LookupError, ValueError):
        found.is_whole = False  # what came before it holds


async def _read_labels(found: Sources, disk: Disk, directory: str) -> None:
    try:
        names = await disk.list_directory(directory)
    except StorageError:
        return
    written: list[tuple[int, int, PartitionLabel]] = []
    for uid in sorted(int(name, 16) for name in names if PARTITION_NAME.fullmatch(name)):
        place = os.path.join(directory, f"{uid:016x}")
        payload = await read_identity(disk, place, uid)
        label = decode_label(payload) if payload is not None else None
        if label is None:
            found.bare.append(uid)
        else:
            written.append((os.stat(os.path.join(place, NAME)).st_mtime_ns, uid, label))
    found.labels = {uid: label for _, uid, label in sorted(written, key=lambda one: one[:2])}


def _take_mentions(found: Sources, mentions: dict[int, Mention]) -> None:
    for uid, one in mentions.items():
        known = found.mentions.get(uid)
        # An attempt to move that was given up has a higher term too, but nothing was ever sent to it.
        if known is None or (one.term > known.term and (one.batches or not known.batches)):
            found.mentions[uid] = one
