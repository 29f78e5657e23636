"""A bound on how often one kind of event is logged; what is left out is counted."""

from __future__ import annotations

import time
from collections.abc import Callable

EVENT_INTERVAL_S = 10.0


class EventRate:
    """One event in interval_s, the first at once. clock: seconds."""

    def __init__(self, interval_s: float = EVENT_INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._clock = interval_s, clock
        self._next_at = float("-inf")
        self._left_out = 0

    def take(self) -> int | None:
        """How many were left out since the last one that was logged; None: leave this one out too."""
        now = self._clock()
        if now < self._next_at:
            self._left_out += 1
            return None
        self._next_at = now + self._interval_s
        left_out, self._left_out = self._left_out, 0
        return left_out
