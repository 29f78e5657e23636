"""Memory and descriptors: what a configuration needs at worst, beside what the machine grants."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping

import msgspec

from shardserver.config import Config, Sources
from shardserver.errors import ConfigError
from shardserver.memory.board import BOARD_BYTES
from shardserver.router.ring_python import ring_bytes
from shardserver.supervisor.cgroup import Cgroup

MIB = 1 << 20
# The interpreter with all modules, idle: 37 MiB in the shard, 31 and 13 in the supervisor and its tracker (RSS).
PROCESS_BYTES = 56 * MIB
# Open beside what is configured: the log of each partition has its last segment open, and a growing journal its files.
PARTITION_DESCRIPTORS = 1024
# Of each peer: two rings, arena, doorbell, inbox.
PEER_DESCRIPTORS = 5
# Standard streams, epoll, listener, links, locks, metadata and offsets files; own arena, doorbell and inbox.
OTHER_DESCRIPTORS = 64
# An empty partition's log, its entry in each table and in the replicas of the metadata: an estimate.
PARTITION_BYTES = 4096
# A default gives way to a small machine: this part of the limit at most, for all shards together.
DEFAULT_SHARE = 8
YIELDING = ("storage.tail_bytes", "net.in_flight_bytes_per_shard")
# What a default gives way to at most: a shard still works with it. Frames above it go through one at a time.
LEAST_DEFAULT_BYTES, LEAST_JOURNAL_FILES = 8 * MIB, 4


def memory_limit() -> tuple[int, str]:
    """The smaller of RAM and the cgroup's limit, and its name."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    granted = Cgroup().memory_bytes()
    return (granted, "cgroup's memory limit") if granted is not None and granted < ram else (ram, "RAM")


def lower_defaults(config: Config, sources: Sources, limit_bytes: int, shards: int) -> tuple[Config, Sources]:
    """What nobody has set takes at most an eighth of the limit each, for all shards together; the sources say so."""
    sources = dict(sources)
    share = max(LEAST_DEFAULT_BYTES, limit_bytes // DEFAULT_SHARE // shards // MIB * MIB)
    wanted = dict.fromkeys(YIELDING, share)
    wanted["journal.files"] = max(LEAST_JOURNAL_FILES, share // config.journal.file_bytes)
    for key, value in wanted.items():
        section, name = key.split(".")
        part = getattr(config, section)
        if key not in sources and getattr(part, name) > value:
            config = msgspec.structs.replace(config, **{section: msgspec.structs.replace(part, **{name: value})})
            sources[key] = "default, lowered to an eighth of the memory limit for all shards"
    return config, sources


def arena_parts(config: Config) -> Mapping[str, int]:
    """Bytes of what lies in one shard's arena at worst, by the keys that set it."""
    if config.router.arena_bytes:
        return {"router.arena_bytes": config.router.arena_bytes}
    journal, storage, net = config.journal, config.storage, config.net
    parts = {
        # Batches that only the journal holds are part of the tail; they drive out the others. So either fills it.
        "storage.tail_bytes or journal.files x journal.file_bytes": max(
            storage.tail_bytes, journal.files * journal.file_bytes
        ),
        # One write in flight, one being filled.
        "2 x journal.max_write_bytes": 2 * journal.max_write_bytes,
        # Eight readers that are expected to go on, each with a read in hand and one under way.
        "16 x storage.read_ahead_bytes": 16 * storage.read_ahead_bytes,
        "net.in_flight_bytes_per_shard": net.in_flight_bytes_per_shard,
        "2 x net.max_frame_bytes": 2 * net.max_frame_bytes,
    }
    # A block is at most an eighth larger than what lies in it (docs/formats/ring.md, "Arena").
    return parts | {"an eighth for rounding": sum(parts.values()) // 8}


def arena_bytes(config: Config) -> int:
    """Bytes of a shard's arena, its board included: a multiple of 4096."""
    return BOARD_BYTES + -(-sum(arena_parts(config).values()) // 4096) * 4096


def memory_parts(config: Config, shards: int) -> Mapping[str, int]:
    """Bytes of each part at worst, of all processes together."""
    rings = shards * (shards - 1) * ring_bytes(config.router.ring_slots)
    parts = {"processes": PROCESS_BYTES * (shards + 1)}
    parts |= {name: shards * size for name, size in arena_parts(config).items()}
    return parts | ({"rings": rings} if rings else {})


def check_memory(config: Config, shards: int, limit_bytes: int, limit_name: str) -> int:
    """Bytes needed at worst. Raises ConfigError with the sum when they are more than the limit."""
    parts = memory_parts(config, shards)
    total = sum(parts.values())
    if total > limit_bytes:
        listed = " + ".join(f"{name} {-(-size // MIB)}" for name, size in parts.items())
        which = f"{shards} shards: " if shards > 1 else ""
        raise ConfigError(
            f"{which}{listed} = {-(-total // MIB)} MiB do not fit into the {limit_name} of {limit_bytes // MIB} MiB"
        )
    return total


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, for this process and its shards; gives it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def check_descriptors(config: Config, limit: int, shards: int) -> int:
    """Descriptors a shard needs at worst. Raises ConfigError with the sum when they are more than the limit."""
    parts = _descriptor_parts(config, shards) | {"partitions": PARTITION_DESCRIPTORS}
    total = sum(parts.values())
    if total > limit != resource.RLIM_INFINITY:
        listed = " + ".join(f"{name} {count}" for name, count in parts.items())
        raise ConfigError(f"{listed} = {total} descriptors do not fit into the limit of {limit} (ulimit -Hn)")
    return total


def _descriptor_parts(config: Config, shards: int) -> dict[str, int]:
    parts = {
        "net.max_connections": config.net.max_connections,
        "storage.open_segments": config.storage.open_segments,
        "journal.files": config.journal.files,
        "peers": PEER_DESCRIPTORS * (shards - 1),
        "others": OTHER_DESCRIPTORS,
    }
    return {name: count for name, count in parts.items() if count}


def partition_limit(config: Config, descriptors_limit: int, memory_limit: int, shards: int) -> int:
    """How many partitions the server can carry: as many as its shards can have open, and memory has room for.

    Counts on an even spread: a rule that gathers all partitions on one shard has only that shard's descriptors. Never
    below the partitions that check_descriptors asks for, so that a sum that just fits is a server that can be used.
    """
    from shardserver.storage.journal_growth import RING_BYTES_PER_PARTITION  # here: most commands need no storage

    free = descriptors_limit - sum(_descriptor_parts(config, shards).values())
    # Each has its last segment open, and its share of a journal that grows with the partitions.
    each = 1 + RING_BYTES_PER_PARTITION / config.journal.file_bytes
    by_descriptors = sys.maxsize if descriptors_limit == resource.RLIM_INFINITY else int(shards * free / each)
    by_memory = (memory_limit - sum(memory_parts(config, shards).values())) // PARTITION_BYTES
    return max(PARTITION_DESCRIPTORS, min(by_descriptors, by_memory))
