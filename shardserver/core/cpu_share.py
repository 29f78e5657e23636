"""CPU use in percent, for figures that any client may ask for at any time."""

from __future__ import annotations

import time
from collections.abc import Callable

# The kernel counts in ticks of 10 ms: over a shorter time the share would be noise.
LEAST_INTERVAL_S = 0.5


class CpuShare:
    """measure: percent since its last call, as psutil's functions give it; the first call here begins its time."""

    def __init__(self, measure: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._measure, self._clock = measure, clock
        self._percent = measure()
        self._at = clock()

    def percent(self) -> float:
        """Since the last call but those less than LEAST_INTERVAL_S ago, which get what it gave."""
        now = self._clock()
        if now - self._at >= LEAST_INTERVAL_S:
            self._percent, self._at = self._measure(), now
        return self._percent
