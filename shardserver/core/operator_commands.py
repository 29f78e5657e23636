"""Commands of an operator on a running server, as the supervisor passes them on: to shard 0, but for stats."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from shardserver.core.calls import Operation
from shardserver.core.groups.access import GroupAccess
from shardserver.core.groups.report import report_groups
from shardserver.core.load import LoadMeter
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.mover import MoveOutcome, Mover
from shardserver.core.placement import Move, Placement, describe
from shardserver.core.shards import Shards
from shardserver.errors import RejectedError, ShardServerError

Content = dict[str, Any]
Command = Callable[[Content], Content | Awaitable[Content]]
Loads = list[tuple[int, float, float]]


class OperatorCommands:
    """Of shard 0. Each takes the arguments of the control socket's request and gives its answer."""

    def __init__(
        self, writer: MetadataWriter, placement: Placement, mover: Mover, shards: Shards, groups: GroupAccess | None
    ) -> None:
        self._writer, self._placement, self._mover, self._shards = writer, placement, mover, shards
        self._groups = groups
        self.commands: dict[str, Command] = {
            "placement": self._describe,
            "move-partition": self._move,
            "rebalance": self._rebalance,
            "groups": self._report_groups,
        }

    def _describe(self, arguments: Content) -> Content:
        return {"shards": self._placement.shards, "partitions": describe(self._writer.metadata, self._placement)}

    async def _report_groups(self, arguments: Content) -> Content:
        if self._groups is None:
            return {"groups": []}
        try:
            return {"groups": await report_groups(self._writer.metadata, self._shards, self._groups)}
        except ShardServerError as error:  # a shard is down
            return {"error": str(error)}

    async def _move(self, arguments: Content) -> Content:
        stream, topic, number, target = (arguments[key] for key in ("stream", "topic", "partition", "to_shard"))
        try:
            found_stream, found_topic = self._writer.metadata.find_topic(_identifier(stream), _identifier(topic))
        except RejectedError as error:
            return {"error": f"no such topic: {error}"}
        if not 0 <= number < len(found_topic.partitions):
            return {"error": f"{stream}/{topic} has {len(found_topic.partitions)} partitions, no number {number}"}
        if not 0 <= target < self._placement.shards:
            return {"error": f"there are {self._placement.shards} shards, no number {target}"}
        partition = found_topic.partitions[number]
        if partition.shard == target:
            return {"moved": 0, "from_shard": target, "to_shard": target}
        move = Move(found_stream.id, found_topic.id, number, partition.uid, partition.shard, target)
        return _told(await self._mover.move([move])) | {"from_shard": move.from_shard, "to_shard": target}

    async def _rebalance(self, arguments: Content) -> Content:
        loads = None
        if arguments["by"] == "load":
            try:
                loads = await self._loads()
            except ShardServerError as error:
                return {"error": str(error)}
        moves = self._placement.rebalance(self._writer.metadata, loads)
        listed = [move._asdict() for move in moves]
        if arguments.get("dry_run"):
            return {"moved": 0, "moves": listed}
        return _told(await self._mover.move(moves)) | {"moves": listed}

    async def _loads(self) -> dict[int, float]:
        """Requests a second of each partition, and its bytes as so many requests of 16 KiB."""
        remote = (one.control(Operation.LOADS, b"") for one in self._shards.remote.values())
        raws = [encode_loads(self._shards), *await asyncio.gather(*remote)]
        parts = [msgspec.msgpack.decode(raw, type=Loads) for raw in raws]
        return {uid: requests + size / (16 << 10) for part in parts for uid, requests, size in part}


def encode_loads(shards: Shards) -> bytes:
    """What a shard answers to LOADS."""
    meter: LoadMeter = shards.local.load
    meter.gather()
    logs = shards.local.logs
    uids = [one.uid for one in logs.partitions] if logs is not None else []
    return msgspec.msgpack.encode([(uid, *meter.per_second(uid)) for uid in uids])


def _identifier(text: str) -> int | str:
    """A name, or an id in digits."""
    return int(text) if text.isdecimal() and text.isascii() else text


def _told(outcome: MoveOutcome) -> Content:
    told: Content = {"moved": outcome.moved}
    if outcome.errors:
        told["error"] = "; ".join(sorted(set(outcome.errors.values())))
        told["not_moved"] = len(outcome.errors)
    return told
