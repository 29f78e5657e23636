"""`shardserver rebuild-metadata`: a new generation of the metadata log out of what the directory still says."""

from __future__ import annotations

import json
import os

from shardserver.admin.kept import Kept
from shardserver.admin.metadata_rebuild import Rebuild
from shardserver.admin.metadata_sources import read_sources
from shardserver.admin.read_only_disk import ReadOnlyDisk
from shardserver.admin.stopped_server import THREADS, change_stopped, read_stopped
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_snapshot import Snapshot, encode_snapshot
from shardserver.storage.directory import make_synced_directory
from shardserver.storage.disk import Disk
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.synced_write import SyncFaults


async def rebuild_metadata(path: str, *, dry_run: bool, as_json: bool) -> int:
    """Print what there is then; exit code 0. Raises ConfigError, StorageError."""
    if dry_run:
        async with read_stopped(path) as (_, data):
            sentences = (await plan_rebuild(data)).said
    else:
        async with change_stopped(path) as (disk, data):
            kept = Kept(disk, data)
            sentences = await rebuild_now(disk, data, kept)
            sentences += [f"kept in {kept.directory}"] if kept.directory else []
    for sentence in sentences:
        print(json.dumps({"rebuild": sentence}) if as_json else sentence)
    return 0


async def plan_rebuild(data: str) -> Rebuild:
    """Its `said` ends with what the metadata would hold. Raises StorageError."""
    disk = ReadOnlyDisk(THREADS)
    try:
        made = Rebuild(await read_sources(disk, data))
    finally:
        await disk.shut_down()
    made.said.append(_summary(made.run()))
    return made


async def rebuild_now(disk: Disk, data: str, kept: Kept) -> list[str]:
    """Gives sentences for the operator. A crash leaves the former log or the new one. Raises StorageError."""
    made = await plan_rebuild(data)
    directory = os.path.join(data, "metadata")
    await make_synced_directory(disk, SyncFaults(), directory)
    for name in await disk.list_directory(directory):
        await kept.link(os.path.join(directory, name))
    log = MetadataLog(disk, directory)
    await log.begin_anew(encode_snapshot(Snapshot(made.metadata, made.sources.snapshot.replies)))
    await log.close()
    return made.said


def _summary(metadata: Metadata) -> str:
    topics = sum(len(stream.topics) for stream in metadata.streams.values())
    counts = f"{len(metadata.streams)} streams, {topics} topics, {metadata.partitions_count} partitions"
    return f"{counts}, {len(metadata.users)} users"
