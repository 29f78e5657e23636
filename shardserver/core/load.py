"""How much is asked of each partition: requests and bytes, decayed so that a minute ago counts a third."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

DECAY_S = 60.0
# So many bytes weigh as much as a request.
BYTES_WEIGHT = 16 << 10

Source = Callable[[], Iterable[tuple[int, int, int]]]


@dataclass(slots=True)
class _Load:
    at: float
    requests: float = 0.0
    bytes: float = 0.0
    all_requests: int = 0
    all_bytes: int = 0

    def decay(self, now: float) -> None:
        factor = math.exp((self.at - now) / DECAY_S)
        self.requests *= factor
        self.bytes *= factor
        self.at = now


class LoadMeter:
    """Per partition, by uid. clock: seconds, never back. A sum decays only when it is looked at or changed.

    sources: of what is served without Python, (uid, requests, bytes) since they were last asked.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loads: dict[int, _Load] = {}
        self.sources: list[Source] = []
        self._busy, self._busy_at, self._busy_used = 0.0, clock(), time.process_time()

    def count(self, uid: int, size: int) -> None:
        """One request that brings `size` bytes."""
        now = self._clock()
        load = self._loads.get(uid)
        if load is None:
            load = self._loads[uid] = _Load(now)
        load.decay(now)
        load.requests += 1
        load.bytes += size
        load.all_requests += 1
        load.all_bytes += size

    def add(self, uid: int, requests: int, size: int) -> None:
        """Several at once."""
        self.count(uid, size)
        load = self._loads[uid]
        load.requests += requests - 1
        load.all_requests += requests - 1

    def gather(self) -> None:
        """Count what has been counted elsewhere: before loads are asked for."""
        for source in self.sources:
            for uid, requests, size in source():
                self.add(uid, requests, size)

    def count_bytes(self, uid: int, size: int) -> None:
        """Bytes that a request counted before has taken away."""
        load = self._loads.get(uid)
        if load is not None:
            load.bytes += size
            load.all_bytes += size

    def per_second(self, uid: int) -> tuple[float, float]:
        """(requests, bytes) a second."""
        load = self._loads.get(uid)
        if load is None:
            return 0.0, 0.0
        load.decay(self._clock())
        return load.requests / DECAY_S, load.bytes / DECAY_S

    def busiest(self, count: int) -> list[tuple[int, int, int]]:
        """[(uid, requests, bytes)] so far, of the partitions that are asked most now."""
        now = self._clock()
        for load in self._loads.values():
            load.decay(now)
        found = heapq.nlargest(
            count, self._loads.items(), key=lambda one: one[1].requests + one[1].bytes / BYTES_WEIGHT
        )
        return [(uid, load.all_requests, load.all_bytes) for uid, load in found]

    def busy_share(self) -> float:
        """CPU of this process over wall time, 0 to 1, since it was last asked a while ago; decayed over a minute."""
        now, used = self._clock(), time.process_time()
        elapsed = now - self._busy_at
        if elapsed > 0:
            weight = 1 - math.exp(-elapsed / DECAY_S)
            self._busy += weight * ((used - self._busy_used) / elapsed - self._busy)
            self._busy_at, self._busy_used = now, used
        return self._busy

    def forget(self, uid: int) -> None:
        self._loads.pop(uid, None)
