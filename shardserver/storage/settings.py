"""What the log needs to know, as plain values. `config.py` has the same keys with their costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

MIB = 1 << 20


class Durability(StrEnum):
    """When an append is acknowledged (docs/durability.md)."""

    FSYNC = "fsync"
    WRITE = "write"
    MEMORY = "memory"


HOUR_US = 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """roll_us: an active segment whose oldest message is so old is sealed, where messages expire.

    wait_us: how long a sealed segment stays past its due time for consumers that have not passed it; None: not at all.
    """

    roll_us: int = HOUR_US
    wait_us: int | None = 7 * 24 * HOUR_US


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Sizes in bytes, times in seconds.

    whole_bytes: a run takes batches of so many from where they lie. Padding them costs 3 % of the space on average at
    64 KiB; below, a copy costs less than a vector of its own.
    """

    journal_file_bytes: int = 16 * MIB
    journal_files: int = 8
    max_write_bytes: int = MIB
    direct_bytes: int = 256 * 1024
    flush_run_bytes: int = 8 * MIB
    whole_bytes: int = 64 * 1024
    tail_bytes: int = 256 * MIB
    read_bytes: int = 256 * 1024
    read_ahead_bytes: int = MIB
    linger_s: float = 1.0
    retry_s: float = 1.0
    open_segments: int = 512
    read_ahead_walks: int = 8
    skip_damaged: bool = False
    retention: RetentionSettings = RetentionSettings()


# What an arena holds beside journal and tail: batches that wait, the largest frame twice.
ARENA_SPARE_BYTES = 256 * MIB


def least_arena_bytes(settings: LogSettings) -> int:
    """What the arena of a shard needs, when its journal does not grow (decisions 5).

    The batches that only the journal holds: at worst all are of 305 bytes, which take 329 in the journal and 512 in the
    arena. And a quarter is left to appends by those who read (`read_buffer`).
    """
    journal = settings.journal_files * settings.journal_file_bytes * 8 // 5
    reads = 2 * settings.read_ahead_walks * settings.read_ahead_bytes
    return (journal + settings.tail_bytes + reads + ARENA_SPARE_BYTES) * 4 // 3


@dataclass(frozen=True, slots=True)
class PartitionIdentity:
    """What names a partition on disk, and how its log behaves.

    uid: never used again. term: raised by a move. partition_id: the number that clients see.
    max_bytes: retention limit of this partition's sealed segments; None keeps everything. expiry_us: sealed segments go
    when their newest message is so old; None: never.
    save_messages, save_bytes: under `memory`, write once so much has gathered; 0: within a second.
    label: what its identity file is to say of it now (docs/formats/identity.md); empty: it gets none.
    """

    uid: int
    term: int
    partition_id: int
    segment_bytes: int = 1 << 30
    durability: Durability = Durability.FSYNC
    offset_durability: Durability = Durability.FSYNC
    max_bytes: int | None = None
    expiry_us: int | None = None
    save_messages: int = 0
    save_bytes: int = 0
    label: Callable[[], bytes] = field(default=bytes, compare=False)
