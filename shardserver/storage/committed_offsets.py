"""Committed offsets of one shard: the values that consumers see, and the records that wait for the journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shardserver.errors import Code, NotOwnerError, RejectedError, ShardServerError
from shardserver.storage import journal_format as fmt
from shardserver.storage.offsets import OffsetKey
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.settings import Durability

OffsetDone = Callable[[ShardServerError | None], None]
# Consumer kind, consumer id, offset.
MovedOffset = tuple[int, int, int]


@dataclass(slots=True)
class OffsetRecord:
    """done: those that are told when the record, or a later one of the same key, is durable."""

    partition: PartitionLog
    kind: int
    consumer: int
    offset: int
    flags: int
    done: list[OffsetDone] = field(default_factory=list)

    @property
    def key(self) -> OffsetKey:
        return (self.partition.uid, self.kind, self.consumer)


class CommittedOffsets:
    """Applied at once; `waiting` holds the newest record of each key that no journal write carries yet.

    `wake` is told of each new record. `refusal`: why none is taken any more.
    """

    def __init__(self, wake: Callable[[OffsetRecord], None]) -> None:
        self._wake = wake
        self.refusal: ShardServerError | None = None
        self._values: dict[OffsetKey, int] = {}
        self._keys: dict[int, set[OffsetKey]] = {}
        self._closed: dict[int, NotOwnerError] = {}
        self.waiting: dict[OffsetKey, OffsetRecord] = {}
        self.waited_for = 0  # how many replies hang on `waiting`

    def __len__(self) -> int:
        return len(self._values)

    def get(self, uid: int, kind: int, consumer: int) -> int | None:
        """The committed offset. Raises NotOwnerError while the partition is closed for a move."""
        if uid in self._closed:
            raise self._closed[uid].with_traceback(None)
        return self._values.get((uid, kind, consumer))

    def lowest(self, uid: int) -> int | None:
        """The lowest offset that any consumer of the partition has stored."""
        return min((self._values[key] for key in self._keys.get(uid, ())), default=None)

    def of_partitions(self, uids: set[int]) -> dict[OffsetKey, int]:
        return {key: offset for key, offset in self._values.items() if key[0] in uids}

    def store(self, partition: PartitionLog, kind: int, consumer: int, offset: int, done: OffsetDone | None) -> None:
        """Set a committed offset. done: told when it is durable; None: applied now, durable with the next write.

        Raises:
            RejectedError: the partition is empty, or offset is above its newest message.
            ShardServerError: the refusal, or the partition's own (NotOwnerError).
        """
        self._check_taken(partition)
        if offset >= partition.high_watermark:
            raise RejectedError(Code.INVALID_OFFSET, f"offset {offset}, high watermark {partition.high_watermark}")
        self._set((partition.uid, kind, consumer), offset)
        self._enqueue(partition, OffsetRecord(partition, kind, consumer, offset, 0), done)

    def commit_at_least(self, partition: PartitionLog, kind: int, consumer: int, offset: int) -> None:
        """Auto-commit: never moves a committed offset back. Raises NotOwnerError."""
        if partition.refusal is not None:
            raise partition.refusal.with_traceback(None)
        key = (partition.uid, kind, consumer)
        if self.refusal is None and self._values.get(key, -1) < offset:
            self._set(key, offset)
            self._enqueue(partition, OffsetRecord(partition, kind, consumer, offset, 0), None)

    def delete(self, partition: PartitionLog, kind: int, consumer: int, done: OffsetDone | None) -> None:
        """Raises RejectedError when none is stored, and the refusal, as store."""
        self._check_taken(partition)
        key = (partition.uid, kind, consumer)
        if key not in self._values:
            raise RejectedError(Code.CONSUMER_OFFSET_NOT_FOUND)
        self._drop(key)
        self._enqueue(partition, OffsetRecord(partition, kind, consumer, 0, fmt.RECORD_TOMBSTONE), done)

    def _set(self, key: OffsetKey, offset: int) -> None:
        self._values[key] = offset
        self._keys.setdefault(key[0], set()).add(key)

    def _drop(self, key: OffsetKey) -> None:
        self._values.pop(key, None)
        self._keys.get(key[0], set()).discard(key)

    def _enqueue(self, partition: PartitionLog, record: OffsetRecord, done: OffsetDone | None) -> None:
        if done is not None and partition.identity.offset_durability is Durability.MEMORY:
            done(None)
        elif done is not None:
            record.done.append(done)
            self.waited_for += 1
        self._put(record)
        self._wake(record)

    def _put(self, record: OffsetRecord) -> None:
        former = self.waiting.pop(record.key, None)
        if former is not None:
            record.done = former.done + record.done
        self.waiting[record.key] = record

    def take_first(self) -> OffsetRecord:
        """The oldest waiting record goes into the journal write being built."""
        record = self.waiting.pop(next(iter(self.waiting)))
        self.waited_for -= len(record.done)
        return record

    def first(self) -> OffsetRecord | None:
        return next(iter(self.waiting.values()), None)

    def _check_taken(self, partition: PartitionLog) -> None:
        refusal = self.refusal or partition.refusal
        if refusal is not None:
            raise refusal.with_traceback(None)  # else it keeps the frames of all raises before

    def forget_partition(self, uid: int) -> None:
        self._closed.pop(uid, None)
        for key in self._keys.pop(uid, set()):
            self._values.pop(key, None)

    def adopt(self, partition: PartitionLog, key: OffsetKey, offset: int) -> None:
        """Take a recovered offset, cut to its partition's end; a cut goes into the first write (storage rule 13)."""
        if partition.fenced is not None or offset < partition.next_offset:
            self._set(key, offset)
            return
        end = partition.next_offset - 1
        if end >= 0:
            self._set(key, end)
        flags = 0 if end >= 0 else fmt.RECORD_TOMBSTONE
        self._put(OffsetRecord(partition, key[1], key[2], max(0, end), flags))

    # A partition that moves

    def of_partition(self, uid: int) -> list[MovedOffset]:
        """What goes with the partition: the applied values, journaled or not."""
        return [(kind, consumer, self._values[uid, kind, consumer]) for _, kind, consumer in self._keys.get(uid, ())]

    def awaits(self, partitions: set[PartitionLog]) -> bool:
        """A reply hangs on an offset of one of them that no journal write carries yet."""
        return any(record.done and record.partition in partitions for record in self.waiting.values())

    def close_partition(self, uid: int, reason: NotOwnerError) -> None:
        """Its values stay, for snapshots, and are not told any more: another shard may have changed them."""
        self._closed[uid] = reason

    def open_partition(self, uid: int) -> None:
        self._closed.pop(uid, None)

    def place(self, uid: int, offsets: list[MovedOffset]) -> None:
        """Take those that came with a partition; its adoption journals them."""
        for kind, consumer, offset in offsets:
            self._set((uid, kind, consumer), offset)

    def refuse_waiting(self, error: ShardServerError) -> None:
        """Tell all who wait; the values stay, and go with the next write that there is."""
        for record in self.waiting.values():
            refused, record.done = record.done, []
            self.waited_for -= len(refused)
            for done in refused:
                done(error)
