"""What a journal write carries beside batches and hints: adoptions and committed offsets, as records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shardserver.errors import StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.committed_offsets import CommittedOffsets, OffsetRecord
from shardserver.storage.handover import Adoption
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.staging import Staging


class WriteRecords:
    """Of one shard. What does not fit into the staging stays where it was, for the next write.

    serves: False of a partition that was forgotten, which gets no records any more.
    """

    def __init__(self, shard: int, serves: Callable[[PartitionLog], bool]) -> None:
        self._shard, self._serves = shard, serves

    def _add(self, staging: Staging, partition: PartitionLog, kind: int, flags: int, raw: bytes) -> bool:
        if not staging.fits(len(raw)):
            return False
        staging.add(kind, flags, self._shard, partition.uid, partition.identity.term, raw)
        return True

    def add_offsets(self, staging: Staging, offsets: CommittedOffsets, taken: list[OffsetRecord]) -> bool:
        """True: there are records of some. taken: gets those that need no further write."""
        has_records = False
        while (record := offsets.first()) is not None:
            if self._serves(record.partition):
                raw = fmt.encode_offset(record.kind, record.consumer, record.offset)
                if not self._add(staging, record.partition, fmt.KIND_OFFSET, record.flags, raw):
                    break
                has_records = True
            taken.append(offsets.take_first())
        return has_records

    def add_adoptions(self, staging: Staging, adoptions: deque[Adoption], ended: list[Adoption]) -> None:
        """ended: gets those whose last record is there. Refuses those whose partition was forgotten."""
        while adoptions:
            adoption = adoptions[0]
            if not self._serves(adoption.partition):
                adoption.refuse(StorageError(f"partition {adoption.partition.uid} was forgotten while it arrived"))
            elif adoption.add_to(staging, self._shard):
                ended.append(adoption)
            else:
                return
            adoptions.popleft()
