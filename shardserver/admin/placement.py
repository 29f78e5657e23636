"""Where the partitions of a stopped server live."""

from __future__ import annotations

import os
from typing import Any

from shardserver.config import Config, check_rules
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.placement import Placement, describe
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.disk import Disk
from shardserver.storage.metadata_log import MetadataLog
from shardserver.supervisor.data_directory import DataDirectory


async def read_placement(config: Config, shards: int) -> dict[str, Any]:
    """What a running server with this configuration would answer. Changes nothing in the metadata.

    Raises:
        ConfigError: a server runs, there is no data, or a rule names a shard that is not there.
        CorruptionError: the metadata log is damaged.
    """
    check_rules(config.placement.rules, shards)
    data = DataDirectory(config.server.data)
    data.open(require_data=True)
    disk = ThreadDisk(1)
    try:
        metadata = await _read(disk, data.path)
    finally:
        await disk.shut_down()
        data.close()
    placement = Placement(config.placement.strategy, config.placement.rules, shards)
    return {"partitions": describe(metadata, placement), "shards": shards}


async def _read(disk: Disk, path: str) -> Metadata:
    directory = os.path.join(path, "metadata")
    if not os.path.isdir(directory):  # the first start ended before it made its first shard
        return Metadata()
    log = MetadataLog(disk, directory)
    try:
        return await MetadataWriter(log, lambda: 0).recover(read_only=True)
    finally:
        await log.close()
