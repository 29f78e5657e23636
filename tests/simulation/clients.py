"""Clients of one shard, which end with its process: they send, poll and commit, and tell the oracle what they learn."""

from __future__ import annotations

import asyncio
import random

from shardserver.core import metadata as md
from shardserver.core.calls import OffsetCall, PollCall, SendCall
from shardserver.core.local_owner import LocalOwner
from shardserver.core.remote_owner import RemoteOwner, Unanswered
from shardserver.errors import RejectedError, ShardServerError
from shardserver.protocol.messages import BY_OFFSET, FIRST, LAST
from tests.batches import make_batch, messages_of
from tests.core.shard_world import ShardProcess
from tests.simulation.oracle import CLIENT_SPAN, Oracle

KIND = 1  # of consumers
SMALL, BULK = (10, 10, 200, 3700, 9000), (20_000, 40_000, 90_000)
POLL_HEAD_BYTES = 16
ANSWER_LIMIT_S = 100.0  # of anything that a client asks


class Client:
    """number: of no other client of this world. One request at a time, except that some sends go together."""

    def __init__(self, number: int, seed: int, process: ShardProcess, oracle: Oracle, *, bulk: bool = False) -> None:
        self._chance, self._process, self._oracle = random.Random(seed), process, oracle
        self._number, self._consumer = number * CLIENT_SPAN, number
        self._sizes = BULK if bulk else SMALL
        self._bulk = bulk
        self._unanswered: Unanswered = []
        self._may_commit = True

    async def run(self, actions: int) -> None:
        for _ in range(actions):
            found = self._choose()
            if found is None:
                return
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await self._act(found)
            await asyncio.sleep(self._chance.choice((0, 0, 0.001, 0.01)))

    def _choose(self) -> md.Partition | None:
        """The first ones more often, so that some grow large."""
        live = [partition for _, partition in self._process.metadata.live_partitions()]
        return live[int(len(live) * self._chance.random() ** 2)] if live else None

    async def _act(self, partition: md.Partition) -> None:
        kind = self._chance.random()
        if kind < (0.85 if self._bulk else 0.65):
            await self._send(partition)
        elif kind < 0.85:
            await self._poll(partition)
        elif self._may_commit:
            await self._commit(partition)

    def _owner(self, partition: md.Partition) -> LocalOwner | RemoteOwner:
        return self._process.shards.owner_of(partition)

    # Sends

    async def _send(self, partition: md.Partition) -> None:
        together = self._chance.choice((1, 1, 2, 4))
        waiting = [self._submit(partition, *self._make()) for _ in range(together)]
        for one in waiting:
            await one

    def _make(self) -> tuple[list[int], bytes]:
        count = self._chance.choice((1, 2, 3))
        numbers = list(range(self._number, self._number + count))
        self._number += count
        size = self._chance.choice(self._sizes)
        return numbers, bytes(make_batch([b"%d " % number + b"x" * size for number in numbers]))

    def send_once(self, partition: md.Partition) -> asyncio.Future[int | ShardServerError]:
        """The base offset, or why it was refused."""
        return self._submit(partition, *self._make())

    def _submit(
        self, partition: md.Partition, numbers: list[int], batch: bytes
    ) -> asyncio.Future[int | ShardServerError]:
        ended: asyncio.Future[int | ShardServerError] = asyncio.get_running_loop().create_future()
        uid = partition.uid
        self._oracle.note_sent(uid, numbers)

        def done(outcome: int | ShardServerError) -> None:
            if isinstance(outcome, int) and not self._process.is_dead:
                self._oracle.note_acknowledged(uid, outcome, numbers)
            if not ended.done():
                ended.set_result(outcome)

        call = SendCall(uid, len(numbers))
        try:
            owner = self._owner(partition)
            if isinstance(owner, LocalOwner):
                owner.send(call, batch, done)
            else:
                owner.send(call, batch, done, self._unanswered)
        except ShardServerError as error:
            done(error)
        return ended

    # Polls

    async def _poll(self, partition: md.Partition) -> None:
        uid = partition.uid
        value = self._chance.randrange(max(1, self._oracle.high_watermarks.get(uid, 0)))
        strategy = self._chance.choice((BY_OFFSET, BY_OFFSET, FIRST, LAST))
        call = PollCall(uid, value, self._chance.choice((1, 7, 100)), self._consumer, 50_000, KIND, strategy, False)
        try:
            reply = self._owner(partition).poll(call)
            parts = reply if isinstance(reply, list) else await reply
        except ShardServerError:
            return
        if self._process.is_dead:
            return
        for offset, payload in messages_of(b"".join(parts)[POLL_HEAD_BYTES:]):
            self._oracle.note_polled(uid, offset, [int(payload.split(b" ")[0])])

    # Committed offsets

    async def _commit(self, partition: md.Partition) -> None:
        uid = partition.uid
        end = self._oracle.learned_end(uid)
        offset = (
            None
            if not end or self._chance.random() < 0.15
            else self._chance.choice((self._chance.randrange(end), end - 1))
        )
        place = self._oracle.note_tried(uid, self._consumer, offset)
        call = OffsetCall(uid, KIND, self._consumer, offset or 0, acknowledged=True)
        try:
            owner = self._owner(partition)
            await (owner.delete_offset(call) if offset is None else owner.store_offset(call))
        except RejectedError:
            return
        except ShardServerError:
            self._may_commit = False  # whether it is done, or will be, nobody knows: what came next could be overtaken
        else:
            if not self._process.is_dead:
                self._oracle.note_committed(uid, self._consumer, place)
