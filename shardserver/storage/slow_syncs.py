"""Says in the log that syncs are slow, at a bounded rate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from shardserver.storage.event_rate import EventRate

log = logging.getLogger(__name__)


class SlowSyncs:
    """Of one shard. device: the one its files lie on. waiting: what waits for the disk, as fields of the event."""

    def __init__(self, shard: int, device: str, waiting: Callable[[], dict[str, Any]]) -> None:
        self._shard, self._device, self._waiting = shard, device, waiting
        self._rate = EventRate()

    def note(self, path: str, seconds: float, files: int) -> None:
        left_out = self._rate.take()
        if left_out is None:
            return
        fields: dict[str, Any] = {"shard": self._shard, "path": path, "took_ms": round(seconds * 1e3)}
        fields |= {"files": files, "device": self._device} | self._waiting() | {"left_out": left_out}
        log.warning("sync_slow", extra={"fields": fields})
