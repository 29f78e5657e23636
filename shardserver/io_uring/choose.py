"""Which disk engine runs, and why: one log line. Asks the kernel and the filesystem, never a version."""

from __future__ import annotations

import logging
import os

from shardserver.errors import ConfigError
from shardserver.io_uring.threads import BLOCK_BYTES, ThreadDisk

log = logging.getLogger(__name__)


def open_disk(kind: str) -> ThreadDisk:
    """kind: `auto`, `io_uring` or `threads`.

    Raises:
        ConfigError: io_uring was asked for and cannot be had.
    """
    if kind == "threads":
        return _chosen(ThreadDisk(), "asked for")
    reason = _unsupported()
    if not reason:
        from shardserver.io_uring.uring_disk import UringDisk

        return _chosen(UringDisk(), "asked for" if kind == "io_uring" else "the kernel has it")
    if kind == "io_uring":
        raise ConfigError(f"disk engine io_uring: {reason}")
    return _chosen(ThreadDisk(), reason)


def check_disk(kind: str, path: str) -> None:
    """Refuse before anything is started what the shard would refuse: an engine that cannot be had, a device too coarse.

    Raises:
        ConfigError: as open_disk and check_block_size.
    """
    reason = _unsupported() if kind == "io_uring" else ""
    if reason:
        raise ConfigError(f"disk engine io_uring: {reason}")
    check_block_size(path)


def _unsupported() -> str:
    try:
        from shardserver.io_uring.queues import unsupported_reason
    except ImportError as error:
        return f"the binding cannot be loaded: {error}"
    return unsupported_reason()


def _chosen(disk: ThreadDisk, reason: str) -> ThreadDisk:
    log.info("disk_engine", extra={"fields": {"engine": disk.name, "reason": reason}})
    return disk


def physical_block_bytes(path: str) -> int:
    """The block that the device under path writes as one, in bytes; BLOCK_BYTES when it does not say (sysfs)."""
    device = os.stat(path).st_dev
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for place in (base, f"{base}/.."):  # a partition's queue is its disk's
        try:
            with open(f"{place}/queue/physical_block_size") as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return BLOCK_BYTES


def check_block_size(path: str) -> None:
    """Refuse a device whose atom is larger than our block: a torn write there could destroy acknowledged neighbours.

    Raises:
        ConfigError: the physical block is above BLOCK_BYTES (docs/durability.md, "What is assumed of the device").
    """
    found = physical_block_bytes(path)
    if found > BLOCK_BYTES:
        raise ConfigError(f"{path}: its device writes blocks of {found} bytes; the formats are made for {BLOCK_BYTES}")
