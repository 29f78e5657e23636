from collections import deque

from shardserver.errors import StorageError
from shardserver.storage.committed_offsets import CommittedOffsets, OffsetRecord
from shardserver.storage.handover import Adoption
from shardserver.storage.journal import Journal
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.resources import LogResources
from shardserver.storage.turn import Staged, Turn

class WriteContent:
    batches: Staged
    offsets: list[OffsetRecord]
    adoptions: list[Adoption]
    checkpoint_sequence: int

class ShardTurn:
    resources: LogResources
    journal: Journal
    failed: StorageError | None
    offsets: CommittedOffsets
    _partitions: dict[int, PartitionLog]
    _turn: Turn
    _shard: int
    _hints: dict[int, PartitionLog]
    _checkpoint: deque[PartitionLog]
    _adoptions: deque[Adoption]
    _checkpoint_started: int
    _checkpoint_sequence: int
    _force_write: bool
    _in_flight: WriteContent | None
    _is_watched: bool
    _pinned: dict[int, dict[PartitionLog, None]]
    _uncovered_offsets: int
    def __init__(self, resources: LogResources, shard: int) -> None: ...
    def _schedule_turn(self) -> None: ...
    def _linger_turn(self) -> None: ...
    def _end_linger(self) -> None: ...
    def _stop_linger(self) -> None: ...
    def _fill(self) -> WriteContent: ...
    def _submit(self, content: WriteContent, clean: bool) -> None: ...
    def _oldest_live(self) -> int: ...
