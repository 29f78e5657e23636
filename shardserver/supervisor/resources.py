"""Memory and descriptors: what a configuration needs at worst, beside what the machine grants."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping

import msgspec

from shardserver.config import Config, Sources
from shardserver.errors import ConfigError
from shardserver.supervisor.cgroup import Cgroup

MIB = 1 << 20
# The interpreter with all modules, idle: 37 MiB in the shard, 31 and 13 in the supervisor and its tracker (RSS).
PROCESS_BYTES = 56 * MIB
# Open beside what is configured: the log of each partition has its last segment open, and a growing journal its files.
PARTITION_DESCRIPTORS = 1024
# Standard streams, epoll, eventfd, listener, links, locks, metadata and offsets files.
OTHER_DESCRIPTORS = 64
# A default gives way to a small machine: this part of the limit at most.
DEFAULT_SHARE = 8
YIELDING = ("storage.tail_bytes", "net.in_flight_bytes_per_shard")


def memory_limit() -> tuple[int, str]:
    """The smaller of RAM and the cgroup's limit, and its name."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    granted = Cgroup().memory_bytes()
    return (granted, "cgroup's memory limit") if granted is not None and granted < ram else (ram, "RAM")


def lower_defaults(config: Config, sources: Sources, limit_bytes: int) -> tuple[Config, Sources]:
    """Caches that nobody has set take at most an eighth of a small machine each; the sources say so."""
    sources = dict(sources)
    for key in YIELDING:
        section, name = key.split(".")
        part = getattr(config, section)
        share = max(MIB, limit_bytes // DEFAULT_SHARE // MIB * MIB)
        if key not in sources and getattr(part, name) > share:
            config = msgspec.structs.replace(config, **{section: msgspec.structs.replace(part, **{name: share})})
            sources[key] = "default, lowered to an eighth of the memory limit"
    return config, sources


def memory_parts(config: Config, shards: int) -> Mapping[str, int]:
    """Bytes of each part at worst, by the keys that set it."""
    return {
        "processes": PROCESS_BYTES * (shards + 1),
        "journal.files x journal.file_bytes": shards * config.journal.files * config.journal.file_bytes,
        "storage.tail_bytes": shards * config.storage.tail_bytes,
        # Eight readers that are expected to go on, each with a read in hand and one under way.
        "16 x storage.read_ahead_bytes": shards * 16 * config.storage.read_ahead_bytes,
        "net.in_flight_bytes_per_shard": shards * config.net.in_flight_bytes_per_shard,
        "2 x net.max_frame_bytes": shards * 2 * config.net.max_frame_bytes,
    }


def check_memory(config: Config, shards: int, limit_bytes: int, limit_name: str) -> int:
    """Bytes needed at worst. Raises ConfigError with the sum when they are more than the limit."""
    parts = memory_parts(config, shards)
    total = sum(parts.values())
    if total > limit_bytes:
        listed = " + ".join(f"{name} {size // MIB}" for name, size in parts.items())
        raise ConfigError(f"{listed} = {total // MIB} MiB do not fit into the {limit_name} of {limit_bytes // MIB} MiB")
    return total


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, for this process and its shards; gives it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def check_descriptors(config: Config, limit: int) -> int:
    """Descriptors a shard needs at worst. Raises ConfigError with the sum when they are more than the limit."""
    parts = {
        "net.max_connections": config.net.max_connections,
        "storage.open_segments": config.storage.open_segments,
        "journal.files": config.journal.files,
        "partitions": PARTITION_DESCRIPTORS,
        "others": OTHER_DESCRIPTORS,
    }
    total = sum(parts.values())
    if total > limit != resource.RLIM_INFINITY:
        listed = " + ".join(f"{name} {count}" for name, count in parts.items())
        raise ConfigError(f"{listed} = {total} descriptors do not fit into the limit of {limit} (ulimit -Hn)")
    return total
