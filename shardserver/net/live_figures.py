"""What `shardserver top` asks a shard for: counters that only grow, so that whoever asks twice has the rates between.

Nothing is counted for it but syncs; it reads what others count for themselves. Of partitions and connections only the
busiest are told, with room for those that become so until the next question.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable
from typing import Any

from shardserver.core.load import LoadMeter
from shardserver.core.metadata import Metadata
from shardserver.net.listener import Listener
from shardserver.router.peers import Peers
from shardserver.storage.sync_times import SyncTimes

TOLD = 40

Row = dict[str, Any]


class LiveFigures:
    """Of one shard. times: of its synced writes."""

    def __init__(
        self, listener: Listener, peers: Peers, load: LoadMeter, times: SyncTimes, metadata: Callable[[], Metadata]
    ) -> None:
        self._listener, self._peers, self._load = listener, peers, load
        self._times, self._metadata = times, metadata

    def take(self) -> Row:
        """clock_s: of this process. told: so many partitions and connections at most.

        crossings: requests to each other shard. ring_used: of the fullest ring, since the last call.
        """
        return {
            "pid": os.getpid(),
            "told": TOLD,
            "clock_s": time.monotonic(),
            "cpu_s": time.process_time(),
            "connections": len(self._listener.clients),
            "in_flight_bytes": self._listener.in_flight_bytes,
            "requests": self._listener.requests,
            "crossings": {str(peer.number): peer.lane.last_number for peer in self._peers},
            "syncs": self._times.counts(),
            "partitions": self._partitions(),
            "busiest_connections": self._connections(),
        } | self._rings()

    def _rings(self) -> Row:
        slots = max((peer.rings.producer.slots for peer in self._peers if peer.rings is not None), default=0)
        return {"ring_slots": slots, "ring_used": max((peer.take_peak_slots() for peer in self._peers), default=0)}

    def _partitions(self) -> list[Row]:
        self._load.gather()
        busiest = self._load.busiest(TOLD)
        places = places_of(self._metadata(), {uid for uid, _, _ in busiest})
        return [
            places[uid] | {"uid": uid, "requests": requests, "bytes": size}
            for uid, requests, size in busiest
            if uid in places
        ]

    def _connections(self) -> list[Row]:
        looked = [(client.look_at_activity(), client) for client in self._listener.clients]
        busiest = heapq.nlargest(TOLD, looked, key=lambda one: one[0])
        return [
            {
                "client_id": client.connection.client_id,
                "address": client.connection.address,
                "user_id": client.connection.user_id if client.connection.is_bound else None,
                "requests": client.wire.frames,
                "in_flight_bytes": client.wire.in_flight_bytes,
            }
            for _, client in busiest
        ]


def places_of(metadata: Metadata, uids: set[int]) -> dict[int, Row]:
    """Names and number of these partitions; without those that are gone."""
    found = {}
    for stream in metadata.streams.values():
        for topic in stream.topics.values():
            for one in topic.partitions:
                if one.uid in uids:
                    found[one.uid] = {"stream": stream.name, "topic": topic.name, "partition": one.id}
    return found
