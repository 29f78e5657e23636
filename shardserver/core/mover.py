"""Moves partitions between shards while the server runs; on shard 0, where metadata is written.

A batch is released by its source, adopted by its destination, and then one event makes it so. Until the event all can
be given up: the source serves on, the destination forgets. From the event on the destination serves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from shardserver.core import metadata_events as ev
from shardserver.core.custody import Arrival, Custodian
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.placement import Move
from shardserver.core.planning import Plan, PlanContext
from shardserver.errors import BackpressureError, ShardServerError
from shardserver.storage.handover import ReleasedPartition

log = logging.getLogger(__name__)

BATCH = 256


@dataclass(slots=True)
class MoveOutcome:
    """errors: of each partition that stayed, by uid."""

    moved: int = 0
    errors: dict[int, str] = field(default_factory=dict)


class Mover:
    """One batch at a time. custodian_of: the shard of that number, or what stands for a shard that is gone.

    A failed metadata log ends the process (MetadataWriter.on_store_failure): the event may be durable or not, and were
    the source to serve on, what it then acknowledges could be lost.
    """

    def __init__(self, writer: MetadataWriter, custodian_of: Callable[[int], Custodian]) -> None:
        self._writer, self._custodian_of = writer, custodian_of
        self._order = asyncio.Lock()
        self.moved = 0

    async def move(self, moves: Iterable[Move], *, batch: int = BATCH, pause_s: float = 0.0) -> MoveOutcome:
        """Move what can be moved. pause_s: between two batches, so that clients get their turn."""
        outcome = MoveOutcome()
        ordered = sorted(moves, key=lambda one: (one.from_shard, one.to_shard))
        for (source, destination), group in groupby(ordered, key=lambda one: (one.from_shard, one.to_shard)):
            pending = list(group)
            while pending:
                some, pending = pending[:batch], pending[batch:]
                async with self._order:
                    await self._move_batch(source, destination, some, outcome)
                if pause_s:
                    await asyncio.sleep(pause_s)
        return outcome

    async def _move_batch(self, source: int, destination: int, batch: list[Move], outcome: MoveOutcome) -> None:
        uids = [one.uid for one in batch]
        processes = (self._custodian_of(source).generation, self._custodian_of(destination).generation)

        def plan(metadata: Metadata, context: PlanContext) -> Plan:
            if processes != (self._custodian_of(source).generation, self._custodian_of(destination).generation):
                raise BackpressureError("a shard died during the move")
            return _plan(metadata, batch, terms)

        terms: dict[int, int] = {}
        try:
            states = await self._release(source, uids, outcome)
            terms = self._next_terms(batch, states)
            arrivals = [Arrival(uid, term, states[uid]) for uid, term in terms.items()]
            await self._custodian_of(destination).adopt(arrivals)
            await self._write_event(plan)
        except ShardServerError as error:
            outcome.errors.update(dict.fromkeys(uids, str(error)))
            fields = {"from_shard": source, "to_shard": destination, "partitions": len(uids), "error": str(error)}
            log.warning("move_given_up", extra={"fields": fields})
            await self._give_up(source, destination, uids)
            return
        stayed = [uid for uid in uids if uid not in terms]
        if stayed:
            await self._quietly(self._custodian_of(source), stayed, give_back=True)
        outcome.moved += len(terms)
        self.moved += len(terms)
        fields = {"from_shard": source, "to_shard": destination, "partitions": len(terms)}
        log.info("partitions_moved", extra={"fields": fields})

    async def _write_event(self, plan: Callable[[Metadata, PlanContext], Plan]) -> None:
        await self._writer.change(plan)

    async def _release(self, source: int, uids: list[int], outcome: MoveOutcome) -> dict[int, ReleasedPartition]:
        states = {}
        for one in await self._custodian_of(source).release(uids):
            if one.state is not None:
                states[one.uid] = one.state
            else:
                outcome.errors[one.uid] = one.error
        return states

    def _next_terms(self, batch: list[Move], states: Mapping[int, ReleasedPartition]) -> dict[int, int]:
        """Of those that were released and are still there."""
        terms = {}
        for one in batch:
            partition = self._writer.metadata.find_partition(one.stream_id, one.topic_id, one.partition_id, one.uid)
            if partition is not None and one.uid in states:
                terms[one.uid] = partition.term + 1
        return terms

    async def _give_up(self, source: int, destination: int, uids: list[int]) -> None:
        """Whoever cannot be told has died, and has recovered what the metadata says."""
        await self._quietly(self._custodian_of(destination), uids, give_back=False)
        await self._quietly(self._custodian_of(source), uids, give_back=True)

    async def _quietly(self, custodian: Custodian, uids: list[int], *, give_back: bool) -> None:
        try:
            await (custodian.resume(uids) if give_back else custodian.abandon(uids))
        except ShardServerError as error:
            log.warning("move_not_undone", extra={"fields": {"partitions": len(uids), "error": str(error)}})


def _plan(metadata: Metadata, batch: list[Move], terms: Mapping[int, int]) -> Plan:
    """One deleted meanwhile counts for nothing: its uid is gone."""
    made = [
        ev.PartitionMove(one.stream_id, one.topic_id, one.partition_id, one.uid, one.to_shard, terms[one.uid])
        for one in batch
        if one.uid in terms
    ]
    return Plan([ev.PartitionsMoved(made)] if made else [])
