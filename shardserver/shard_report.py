"""What a shard tells its supervisor of itself: the figures of `shardserver stats`."""

from __future__ import annotations

from typing import Any

import msgspec

from shardserver.core.load import LoadMeter
from shardserver.core.sessions import Sessions
from shardserver.memory.arena import Arena
from shardserver.net.listener import Listener
from shardserver.router.peers import Peers
from shardserver.storage.shard_log import ShardLog


class ShardReport:
    """Of one shard."""

    def __init__(
        self, shard: int, sessions: Sessions, listener: Listener, load: LoadMeter, arena: Arena, peers: Peers
    ) -> None:
        self._shard, self._sessions, self._listener = shard, sessions, listener
        self._load, self._arena, self._peers = load, arena, peers

    def take(self, logs: ShardLog) -> dict[str, Any]:
        self._load.gather()
        return {
            "shard": self._shard,
            "connections": len(self._sessions.connections),
            "in_flight_bytes": self._listener.in_flight_bytes,
            "busy_share": round(self._load.busy_share(), 3),
            "arena": msgspec.to_builtins(self._arena.statistics()),
            "peers": [msgspec.to_builtins(one) for one in self._peers.statistics()],
            "handover": msgspec.to_builtins(self._listener.handover.statistics),
            "log": msgspec.to_builtins(logs.statistics()),
            "retention": msgspec.to_builtins(logs.retention.statistics),
            "partitions": self._partitions(logs),
        }

    def _partitions(self, logs: ShardLog) -> list[dict[str, Any]]:
        partitions = []
        for one in logs.partitions:
            requests, size = self._load.per_second(one.uid)
            load_figures = {"requests_per_s": round(requests, 2), "bytes_per_s": round(size)}
            partitions.append(msgspec.to_builtins(one.statistics()) | load_figures)
        return partitions
