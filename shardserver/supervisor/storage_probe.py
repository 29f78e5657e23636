"""What the data directory lies on: file system, device, its write cache, and how long a sync takes there."""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PROBE_SYNCS = 5
# What is wrong with each for a log of small synced writes; durability.md says what is assumed.
WARNED = {
    "overlay": "a container's own layer: it goes with the container; mount a volume",
    "btrfs": "copies on write: synced writes in place are slow and spread the journal over the disk",
    "zfs": "copies on write: synced writes in place are slow, and no block is written in place",
    "nfs": "a sync is a network round trip, and locks of a dead client may linger",
    "nfs4": "a sync is a network round trip, and locks of a dead client may linger",
    "tmpfs": "memory: nothing survives a reboot",
}


@dataclass(frozen=True, slots=True)
class Mount:
    """device: `major:minor`. source: as mounted, such as /dev/vda1."""

    device: str
    point: str
    file_system: str
    source: str


def mount_of(path: str, mountinfo: str = "/proc/self/mountinfo") -> Mount:
    """The mount that path lies on (proc_pid_mountinfo(5)); `unknown` where that cannot be read."""
    wanted = os.stat(path).st_dev
    device = f"{os.major(wanted)}:{os.minor(wanted)}"
    found: Mount | None = None
    with contextlib.suppress(OSError):
        for line in Path(mountinfo).read_text().splitlines():
            before, _, after = line.partition(" - ")
            fields, kind = before.split(), after.split()
            point = fields[4].encode().decode("unicode_escape")
            is_above = os.path.commonpath([os.path.abspath(path), point]) == point
            if len(kind) >= 2 and is_above and (found is None or len(point) >= len(found.point)):
                # The device of stat(2) is another one on btrfs and overlay, so the path decides.
                found = Mount(fields[2], point, kind[0], kind[1])
    return found or Mount(device, "", "unknown", "unknown")


def device_name(device: str, sysfs: Path = Path("/sys/dev/block")) -> str:
    """The kernel's name of a block device, such as vda1; `major:minor` where it has none."""
    with contextlib.suppress(OSError):
        for line in (sysfs / device / "uevent").read_text().splitlines():
            if line.startswith("DEVNAME="):
                return line.removeprefix("DEVNAME=")
    return device


def write_cache(device: str, sysfs: Path = Path("/sys/dev/block")) -> str:
    """`write back` (a sync has to flush it), `write through`, or `unknown`."""
    for place in (sysfs / device, sysfs / device / ".."):  # a partition's queue is its disk's
        with contextlib.suppress(OSError):
            return (place / "queue" / "write_cache").read_text().strip()
    return "unknown"


def sync_times_us(directory: str) -> list[int]:
    """Of some writes of 4 KiB with fdatasync, each; empty where there is no room to try."""
    path, taken = os.path.join(directory, "sync-probe"), []
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, bytes(4096), 0)
            os.fdatasync(descriptor)  # the first one also writes the file's length
            for _ in range(PROBE_SYNCS):
                began = time.perf_counter_ns()
                os.pwrite(descriptor, bytes(4096), 0)
                os.fdatasync(descriptor)
                taken.append((time.perf_counter_ns() - began) // 1000)
        finally:
            os.close(descriptor)
            os.unlink(path)
    except OSError:
        return []
    return taken


def log_storage(data: str, run: str) -> None:
    """One event `storage`, and a warning `file_system_unsuited` where the file system has a known drawback."""
    mount = mount_of(data)
    taken = sync_times_us(run)
    fields = {
        "path": data,
        "file_system": mount.file_system,
        "mounted_at": mount.point,
        "device": device_name(mount.device),
        "write_cache": write_cache(mount.device),
        "sync_p50_us": round(statistics.median(taken)) if taken else None,
        "sync_max_us": max(taken, default=None),
    }
    log.info("storage", extra={"fields": fields})
    if mount.file_system in WARNED:
        reason = WARNED[mount.file_system]
        log.warning("file_system_unsuited", extra={"fields": {"file_system": mount.file_system, "reason": reason}})
