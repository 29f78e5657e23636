"""The watch-dog: which shards' loops stand still.

A shard's beat grows on its board while its loop runs. What counts is how many looks in a row have found the same beat,
not the time between them: a supervisor that was itself suspended (a laptop's lid, SIGSTOP) has lived through one look,
however long that took by the clock, and the shards get their whole limit anew.

A shard that starts or recovers has a longer limit. Its running loop alone is progress: it waits for disks and locks
without holding up the loop, and a wait for them is one that a restart would not end either.
"""

from __future__ import annotations

LOOKS = 4


class Silence:
    """Of one process: seconds that its beat has stood still, in the supervisor's own time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._beats = 0

    def look(self, beats: int, since_last_s: float) -> None:
        self.seconds = 0.0 if beats != self._beats else self.seconds + since_last_s
        self._beats = beats


class StallWatch:
    """When to look, and what is too long. Limits in seconds, 0: no limit."""

    def __init__(self, limit_s: float, recovery_limit_s: float, now: float) -> None:
        self._limit_s, self._recovery_limit_s = limit_s, recovery_limit_s
        self._interval_s = beat_interval_s(limit_s, recovery_limit_s)
        self.next_look_at = now + self._interval_s if self._interval_s else None

    def is_due(self, now: float) -> bool:
        """True once an interval; the next one begins now."""
        if self.next_look_at is None or now < self.next_look_at:
            return False
        self.next_look_at = now + self._interval_s
        return True

    def is_stalled(self, silence: Silence, beats: int, *, is_ready: bool) -> bool:
        """One look at one shard; call when is_due."""
        silence.look(beats, self._interval_s)
        limit_s = self._limit_s if is_ready else self._recovery_limit_s
        return 0 < limit_s <= silence.seconds


def beat_interval_s(limit_s: float, recovery_limit_s: float) -> float:
    """Seconds between beats, and between looks: a quarter of the shorter limit. 0: nobody looks."""
    return min((limit / LOOKS for limit in (limit_s, recovery_limit_s) if limit), default=0.0)
