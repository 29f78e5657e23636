"""Members that have fallen silent: clients ping every few seconds, so these are gone, and lose their partitions."""

from __future__ import annotations

import logging
from collections.abc import Callable

from shardserver.core.sessions import EVICT_STALE, Sessions

log = logging.getLogger(__name__)

# Silent for so many intervals: as the peer has it.
STALE_AFTER = 1.2


class Heartbeats:
    """Of one shard's connections. A silent connection that is in no group is left alone."""

    def __init__(self, sessions: Sessions, interval_s: float, clock: Callable[[], float]) -> None:
        self._sessions, self._interval_s, self._clock = sessions, interval_s, clock
        self._seen: dict[int, tuple[int, float]] = {}  # client id -> frames, and since when so many

    def look(self, frames: dict[int, int]) -> None:
        """frames: that each connection has brought so far, by client id."""
        now = self._clock()
        members = {id: one for id, one in self._sessions.connections.items() if one.groups and id in frames}
        self._seen = {id: self._since(id, frames[id], now) for id in members}
        for id, connection in members.items():
            if now - self._seen[id][1] > STALE_AFTER * self._interval_s:
                log.info(
                    "member_stale", extra={"fields": {"peer": connection.address, "groups": len(connection.groups)}}
                )
                self._sessions.end(connection, EVICT_STALE)

    def _since(self, id: int, frames: int, now: float) -> tuple[int, float]:
        known = self._seen.get(id)
        return known if known is not None and known[0] == frames else (frames, now)
