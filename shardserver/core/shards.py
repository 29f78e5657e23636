"""All shards of the server as one of them sees them: who owns a partition, and what all of them know together."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil

from shardserver.core.calls import OffsetCall, Operation, PollCall, SendCall
from shardserver.core.cpu_share import CpuShare
from shardserver.core.local_owner import Buffers, LocalOwner, PartitionFigures, SendDone
from shardserver.core.metadata import Partition
from shardserver.core.remote_owner import RemoteOwner
from shardserver.core.sessions import Connection, Sessions
from shardserver.errors import BackpressureError, ShardServerError
from shardserver.protocol.clients import ClientDetails
from shardserver.router.peers import Peers, Request

Figures = dict[int, PartitionFigures]


@dataclass(slots=True)
class Totals:
    """Sums over partitions and processes. cpu_percent: of one core, since it was asked before."""

    partitions: int = 0
    segments: int = 0
    size_bytes: int = 0
    messages: int = 0
    clients: int = 0
    memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    threads: int = 0
    cpu_percent: float = 0.0

    def add(self, other: Totals) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Shards:
    """on_routed is told of each data request of a connection, and which shard it went to (hand-over counts them)."""

    def __init__(self, number: int, count: int, local: LocalOwner, peers: Peers | None, sessions: Sessions) -> None:
        self.number, self.local, self._sessions = number, local, sessions
        self.remote: dict[int, RemoteOwner] = {}
        if peers is not None:
            others = (other for other in range(count) if other != number)
            self.remote = {other: RemoteOwner(peers.peer(other), peers.now) for other in others}
        self._process = psutil.Process()
        self._cpu, self.machine_cpu = CpuShare(self._process.cpu_percent), CpuShare(psutil.cpu_percent)
        self.recent_logs: Callable[[], list[str]] = list

    def owner_of(self, partition: Partition) -> LocalOwner | RemoteOwner:
        if partition.shard == self.number:
            return self.local
        return self._remote(partition.shard)

    def _remote(self, shard: int) -> RemoteOwner:
        found = self.remote.get(shard)
        if found is None:  # its partitions are on their way to other shards
            raise BackpressureError(f"there is no shard {shard}")
        return found

    # Data requests

    def send(self, connection: Connection, partition: Partition, call: SendCall, batch: Any, done: SendDone) -> None:
        """Raises RejectedError, BackpressureError."""
        connection.note_route(partition.shard)
        if partition.shard == self.number:
            self.local.send(call, batch, done)
        else:
            self._remote(partition.shard).send(call, batch, done, connection.unanswered)

    def poll(self, connection: Connection, partition: Partition, call: PollCall) -> Buffers | Awaitable[Buffers]:
        connection.note_route(partition.shard)
        return self.owner_of(partition).poll(call)

    async def get_offset(self, partition: Partition, call: OffsetCall) -> tuple[int, int | None]:
        if partition.shard == self.number:
            return self.local.get_offset(call)
        return await self._remote(partition.shard).get_offset(call)

    # What all know together

    async def figures(self, partitions: list[Partition]) -> Figures:
        """Segments, offsets and sizes, asked of the owners. Raises NotOwnerError: one has just gone."""
        by_shard: dict[int, list[int]] = {}
        for one in partitions:
            by_shard.setdefault(one.shard, []).append(one.uid)
        parts = await asyncio.gather(*(self._figures_of(shard, uids) for shard, uids in by_shard.items()))
        return {one[0]: one for part in parts for one in part}

    async def _figures_of(self, shard: int, uids: list[int]) -> list[PartitionFigures]:
        if shard == self.number:
            return self.local.figures(uids)
        raw = await self._remote(shard).control(Operation.INFO, msgspec.msgpack.encode(uids))
        return msgspec.msgpack.decode(raw, type=list[PartitionFigures])

    async def clients(self) -> list[ClientDetails]:
        parts = await self._ask_all(Operation.CLIENTS, list[ClientDetails])
        return [*self.local_clients(), *(one for part in parts for one in part)]

    async def client(self, client_id: int) -> ClientDetails | None:
        return next((one for one in await self.clients() if one.info.client_id == client_id), None)

    async def totals(self) -> Totals:
        total = self.local_totals()
        for part in await self._ask_all(Operation.TOTALS, Totals):
            total.add(part)
        return total

    async def logs(self) -> dict[int, list[str] | None]:
        """The last lines that each shard has logged; None: it is down."""
        others = await asyncio.gather(*map(self._logs_of, self.remote))
        return {self.number: self.recent_logs(), **dict(zip(self.remote, others, strict=True))}

    async def _logs_of(self, shard: int) -> list[str] | None:
        try:
            raw = await self._remote(shard).control(Operation.LOGS, b"")
        except ShardServerError:
            return None
        return msgspec.msgpack.decode(raw, type=list[str])

    async def _ask_all(self, operation: Operation, kind: Any) -> list[Any]:
        """Of every other shard. Raises BackpressureError: one is down."""
        raws = await asyncio.gather(*(one.control(operation, b"") for one in self.remote.values()))
        return [msgspec.msgpack.decode(raw, type=kind) for raw in raws]

    # Our part of it

    def local_clients(self) -> list[ClientDetails]:
        return [one.details() for one in self._sessions.connections.values()]

    def local_totals(self) -> Totals:
        counters, logs = self._process.io_counters(), self.local.logs
        partitions = list(logs.partitions) if logs is not None else []
        return Totals(
            partitions=len(partitions),
            segments=sum(one.segments_count for one in partitions),
            size_bytes=sum(one.size_bytes for one in partitions),
            messages=sum(one.message_count for one in partitions),
            clients=len(self._sessions.connections),
            memory_bytes=self._memory_bytes(),
            read_bytes=counters.read_bytes,
            written_bytes=counters.write_bytes,
            threads=self._process.num_threads(),
            cpu_percent=self._cpu.percent(),
        )

    def _memory_bytes(self) -> int:
        """What is ours alone, and what is used of our arena: peers have mapped that too, and each counts its own."""
        found, logs = self._process.memory_info(), self.local.logs
        arena = logs.resources.memory.statistics().used_bytes if logs is not None else 0
        return int(found.rss - found.shared) + arena

    def control_handlers(self) -> dict[int, Callable[[Request], bytes]]:
        """What peers ask for in `figures`, `clients`, `totals` and `logs`."""
        encode = msgspec.msgpack.encode
        return {
            Operation.INFO: lambda asked: encode(self.local.figures(decode_uids(asked.payload))),
            Operation.CLIENTS: lambda asked: encode(self.local_clients()),
            Operation.TOTALS: lambda asked: encode(self.local_totals()),
            Operation.LOGS: lambda asked: encode(self.recent_logs()),
        }


def decode_uids(raw: memoryview) -> list[int]:
    return msgspec.msgpack.decode(raw, type=list[int])
