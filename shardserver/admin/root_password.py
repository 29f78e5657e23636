"""A new root password for a stopped server."""

from __future__ import annotations

import os
import secrets
import time

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.authentication import hash_password
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.planning import Plan
from shardserver.errors import ConfigError
from shardserver.io_uring.threads import ThreadDisk
from shardserver.storage.disk import Disk
from shardserver.storage.metadata_log import MetadataLog
from shardserver.supervisor.data_directory import DataDirectory


async def reset_root_password(path: str, given: str | None) -> int:
    """Set it to `given`, or to a random one that is printed once. Raises ConfigError when a server runs."""
    data = DataDirectory(path)
    data.open(require_data=True)
    disk = ThreadDisk(1)
    password = given or secrets.token_urlsafe(18)
    try:
        await _set(disk, data.path, hash_password(password))
    finally:
        await disk.shut_down()
        data.close()
    print("root password set" if given else f"new root password: {password}")
    return 0


async def _set(disk: Disk, path: str, password_hash: str) -> None:
    log = MetadataLog(disk, os.path.join(path, "metadata"))
    writer = MetadataWriter(log, lambda: time.time_ns() // 1000)
    await writer.recover()
    try:
        if md.ROOT_ID not in writer.metadata.users:
            raise ConfigError(f"{path} has no root user yet: start the server once")
        await writer.change(lambda state, context: Plan([ev.PasswordSet(md.ROOT_ID, password_hash)]))
    finally:
        await log.close()
