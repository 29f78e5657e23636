"""What all logs of one shard share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shardserver.memory.arena import Arena
from shardserver.memory.heap import heap_arena
from shardserver.storage.append_log import Admission
from shardserver.storage.disk import Disk
from shardserver.storage.run import StagingPool
from shardserver.storage.segment_reader import ParkedWalks, SegmentFiles
from shardserver.storage.settings import LogSettings
from shardserver.storage.synced_write import SyncFaults

# Of logs that nobody gave an arena to. Committed when first touched.
DEFAULT_ARENA_BYTES = 256 << 20


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Hooks:
    """before_submit: called right before a journal write or a run is given to the disk.

    Whoever answers over a ring publishes there, so that an answer is visible before a hint that covers it is on disk.
    refill: called after a journal write, before the next one is built: answers leave, requests come in.
    answers_are_known: nobody will ask again for what a former process of this shard has stored and not answered.
    """

    before_submit: Callable[[], None] = _nothing
    refill: Callable[[], None] = _nothing
    answers_are_known: bool = True


@dataclass(frozen=True, slots=True)
class LogResources:
    """clock: microseconds since the epoch; it may go back. memory: of the tail and of what polls read behind it."""

    disk: Disk
    settings: LogSettings
    clock: Callable[[], int]
    faults: SyncFaults
    files: SegmentFiles
    walks: ParkedWalks
    admission: Admission = field(default_factory=Admission)
    hooks: Hooks = field(default_factory=Hooks)
    staging: StagingPool = field(default_factory=StagingPool)
    memory: Arena = field(default_factory=lambda: heap_arena(DEFAULT_ARENA_BYTES))
