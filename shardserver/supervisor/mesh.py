"""Who is joined with whom: two living shards share a pair of rings, and have each other's arena, doorbell and inbox."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack

from shardserver.supervisor.descriptors import copies
from shardserver.supervisor.endpoint import make_ring_memory
from shardserver.supervisor.messages import Peer, PeerGone
from shardserver.supervisor.shard_handle import ShardHandle

log = logging.getLogger(__name__)


class Mesh:
    """A shard joins when its loop runs: descriptors do not gather on the links of processes that still start."""

    def __init__(self, ring_slots: int) -> None:
        self._ring_slots = ring_slots
        self._joined: list[ShardHandle] = []

    def join(self, shard: ShardHandle) -> None:
        others = list(self._joined)
        self._joined.append(shard)
        try:
            for other in others:
                self._introduce(shard, other)
        except OSError as error:  # no descriptors or no memory: as if it had died, so its next start tries again
            log.error("shard_not_joined", extra={"fields": {"shard": shard.number, "error": str(error)}})
            shard.kill()

    def part(self, shard: ShardHandle) -> None:
        """Call when its process has ended."""
        if shard in self._joined:
            self._joined.remove(shard)
            for other in self._joined:
                other.send(PeerGone(shard.number))

    def _introduce(self, one: ShardHandle, other: ShardHandle) -> None:
        with ExitStack() as made:
            to_other, to_one = self._ring(made), self._ring(made)
            self._tell(one, other, to_other, to_one)
            self._tell(other, one, to_one, to_other)

    def _ring(self, made: ExitStack) -> int:
        descriptor = make_ring_memory(self._ring_slots)
        made.callback(os.close, descriptor)
        return descriptor

    @staticmethod
    def _tell(shard: ShardHandle, peer: ShardHandle, ring_to: int, ring_from: int) -> None:
        assert peer.endpoint is not None
        shard.send(Peer(peer.number, peer.recovered is not None), copies((ring_to, ring_from, *peer.endpoint.shared)))
