"""What the owner of a partition does: sends, polls, committed offsets, deleting segments; for clients and peers.

Its logs are there once recovery has ended; until then, and for a partition that is not ours, NotOwnerError.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from shardserver.core.calls import CutCall, OffsetCall, PollCall, SendCall
from shardserver.core.groups.fences import Fences
from shardserver.core.load import LoadMeter
from shardserver.errors import NotOwnerError, RejectedError, ShardServerError, StorageError
from shardserver.memory.buffers import WritableBuffer
from shardserver.protocol.addresses import CONSUMER_GROUP
from shardserver.protocol.messages import BY_OFFSET, BY_TIMESTAMP, FIRST, LAST, encode_poll_head
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.read_builder import ReadResult
from shardserver.storage.shard_log import ShardLog

log = logging.getLogger(__name__)

Buffers = list[bytes | bytearray | memoryview]
# For a member that does not own the partition (any more): it asks for its assignment again (messages 4.3).
RESYNC = encode_poll_head(0xFFFFFFFF, 0, 0)
SendDone = Callable[[int | ShardServerError], None]
PartitionFigures = tuple[int, int, int, int, int]  # uid, segments, current offset, bytes, messages


class LocalOwner:
    """The partitions of this shard. `logs` is set when they have been recovered."""

    def __init__(self, load: LoadMeter) -> None:
        self.logs: ShardLog | None = None
        self.load = load
        self.fences = Fences()
        self._repeats: dict[int, asyncio.Task[None]] = {}
        self._taken: dict[int, set[int]] = {}

    def log_of(self, uid: int) -> PartitionLog:
        """Raises NotOwnerError."""
        if self.logs is None:
            raise NotOwnerError("the shard recovers")
        try:
            return self.logs.partition(uid)
        except KeyError:
            raise NotOwnerError(f"partition {uid} is not here") from None

    def target_of(self, uid: int) -> PartitionLog | None:
        """Where sends of peers go at once. None: it is not here, or repeats come first (send_from_peer)."""
        if self.logs is None or uid in self._repeats:
            return None
        return self.logs.find_partition(uid)

    # Sends

    def send(self, call: SendCall, batch: Any, done: SendDone) -> None:
        """Append a verified batch. done gets its base offset once it is as durable as its topic says, or the refusal.

        The batch is copied into this shard's memory before this returns. Raises NotOwnerError, BackpressureError.
        """
        partition = self.log_of(call.uid)
        assert self.logs is not None
        self.load.count(call.uid, len(batch))
        self.append(partition, self.logs.copy_batch(batch), call.count, done)

    def append(self, partition: PartitionLog, data: WritableBuffer, count: int, done: SendDone) -> None:
        """Append a verified batch that lies in this shard's memory already. Raises what it must not: a bug."""
        try:
            partition.append(data, count, done)
        except Exception as error:  # a bug amid a change: what is in memory of this partition may be half of it
            partition.fence_after_bug("an append", error)
            raise

    def send_from_peer(self, call: SendCall, batch: Any, done: SendDone, *, is_repeat: bool) -> None:
        """As send, in order with the repeats before it: those may have to look into segments first."""
        before = self._repeats.get(call.uid)
        if not is_repeat and before is None:
            self.send(call, batch, done)
            return
        task = asyncio.get_running_loop().create_task(self._send_after(before, call, batch, done, is_repeat))
        self._repeats[call.uid] = task
        task.add_done_callback(lambda ended: self._forget_repeat(call.uid, ended))

    def _forget_repeat(self, uid: int, ended: asyncio.Task[None]) -> None:
        if self._repeats.get(uid) is ended:
            del self._repeats[uid]

    async def _send_after(
        self, before: asyncio.Task[None] | None, call: SendCall, batch: Any, done: SendDone, is_repeat: bool
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            found = await self._find_repeated(call, batch) if is_repeat else None
            if found is not None:
                done(found)
            else:
                self.send(call, batch, done)
        except ShardServerError as error:
            done(error)
        except Exception as error:  # a bug: who asked is told of it, as what is asked without waiting is
            log.exception("send_failed", extra={"fields": {"partition": call.uid}})
            done(StorageError(f"a send failed inside the server: {error!r}"))

    async def _find_repeated(self, call: SendCall, batch: Any) -> int | None:
        """The base offset of the batch if the former process of this shard stored it; each one answers one repeat.

        Below what the newest hint says all had been answered, and the asking shard saw answers below its
        floor: what it asks again for lies above both, and below the end that was recovered. A floor above that end is
        of answers that were lost since (`memory`), and says nothing.
        """
        partition = self.log_of(call.uid)
        floor = call.floor if call.floor <= partition.recovered_end else 0
        first = max(floor, partition.answered_offset)
        taken = self._taken.setdefault(call.uid, set())
        found = await partition.reader.find_batch(batch, call.count, first, partition.recovered_end, taken)
        if found is not None:
            taken.add(found)
        return found

    # Polls

    def poll(self, call: PollCall) -> Buffers | Awaitable[Buffers]:
        """The reply's body: head, then stored batches. Raises as PartitionReader.read, and NotOwnerError."""
        partition = self.log_of(call.uid)
        self.load.count(call.uid, 0)
        if not self._may_poll(call):
            return [RESYNC]
        if call.strategy == BY_TIMESTAMP:
            return self._poll_later(call, partition)
        start = self._start_offset(call, partition)
        result = partition.reader.try_read(start, call.count, call.max_bytes)
        return self._poll_later(call, partition, start) if result is None else self._poll_body(call, partition, result)

    async def _poll_later(self, call: PollCall, partition: PartitionLog, start: int = -1) -> Buffers:
        if start < 0:
            start = await partition.reader.offset_at(call.value)
        return self._poll_body(call, partition, await partition.reader.read(start, call.count, call.max_bytes))

    def _start_offset(self, call: PollCall, partition: PartitionLog) -> int:
        if call.strategy == BY_OFFSET:
            return call.value
        if call.strategy == LAST:
            return max(partition.first_offset, partition.high_watermark - call.count)
        if call.strategy == FIRST:
            return partition.first_offset
        stored = self.committed(call.uid, call.kind, call.consumer)
        return partition.first_offset if stored is None else stored + 1

    def _may_poll(self, call: PollCall) -> bool:
        return call.kind != CONSUMER_GROUP or self.fences.may_poll(call.uid, call.consumer, call.member)

    def _poll_body(self, call: PollCall, partition: PartitionLog, result: ReadResult) -> Buffers:
        if not self._may_poll(call):  # the partition was taken from the member while the disk was waited for
            return [RESYNC]
        if call.kind == CONSUMER_GROUP and result.count:
            self.fences.note_delivered(call.uid, call.consumer, call.member, result.last_offset)
        if call.auto_commit and result.count:
            self.auto_commit(partition, call.kind, call.consumer, result.last_offset)
        self.load.count_bytes(call.uid, result.bytes)
        return [
            encode_poll_head(partition.identity.partition_id, partition.current_offset, result.count),
            *result.buffers,
        ]

    # Committed offsets

    def committed(self, uid: int, kind: int, consumer: int) -> int | None:
        """A consumer's committed offset of a partition of ours. Raises NotOwnerError."""
        assert self.logs is not None
        return self.logs.offsets.get(uid, kind, consumer)

    def auto_commit(self, partition: PartitionLog, kind: int, consumer: int, offset: int) -> None:
        """Raises NotOwnerError."""
        assert self.logs is not None
        self.logs.offsets.commit_at_least(partition, kind, consumer, offset)

    def get_offset(self, call: OffsetCall) -> tuple[int, int | None]:
        """(current offset of the partition, stored offset)."""
        partition = self.log_of(call.uid)
        return partition.current_offset, self.committed(call.uid, call.kind, call.consumer)

    def _check_commit(self, call: OffsetCall) -> None:
        """Raises RejectedError(20), BackpressureError."""
        if call.kind == CONSUMER_GROUP:
            self.fences.check_commit(call.uid, call.consumer, call.member, is_manager=call.is_manager)

    def forget_group(self, uids: list[int], group: int) -> None:
        """A group is gone, and its committed offsets with it."""
        self.fences.forget(uids=set(uids), group=group)
        for uid in uids:
            partition = None if self.logs is None else self.logs.find_partition(uid)
            if partition is not None and self.logs is not None:
                with contextlib.suppress(RejectedError, NotOwnerError):  # it has committed nothing here
                    self.logs.offsets.delete(partition, CONSUMER_GROUP, group, None)

    async def store_offset(self, call: OffsetCall) -> None:
        partition = self.log_of(call.uid)
        assert self.logs is not None
        self._check_commit(call)
        outcome, done = _offset_done(call.acknowledged)
        self.logs.offsets.store(partition, call.kind, call.consumer, call.offset, done)
        await outcome

    async def delete_offset(self, call: OffsetCall) -> None:
        partition = self.log_of(call.uid)
        assert self.logs is not None
        self._check_commit(call)
        outcome, done = _offset_done(call.acknowledged)
        self.logs.offsets.delete(partition, call.kind, call.consumer, done)
        await outcome

    # Segments

    async def find_cut(self, call: CutCall) -> int:
        """The first offset that stays when the oldest sealed segments go that need not wait for a consumer."""
        partition = self.log_of(call.uid)
        assert self.logs is not None
        return self.logs.retention.cut_offset(partition, call.number)

    async def cut(self, call: CutCall) -> None:
        """Delete the segments that lie wholly below an offset; those that are gone already are fine."""
        partition = self.log_of(call.uid)
        assert self.logs is not None
        await self.logs.retention.delete(partition, call.number)

    def figures(self, uids: list[int]) -> list[PartitionFigures]:
        """Of each partition of ours among them."""
        found = []
        for uid in uids:
            one = self.log_of(uid)
            found.append((uid, one.segments_count, one.current_offset, one.size_bytes, one.message_count))
        return found


def _offset_done(acknowledged: bool) -> tuple[asyncio.Future[None], Callable[[ShardServerError | None], None] | None]:
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if not acknowledged:
        outcome.set_result(None)
        return outcome, None

    def done(error: ShardServerError | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    return outcome, done
