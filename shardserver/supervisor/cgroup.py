"""What the process's cgroup grants, in version 2 and version 1 (kernel: admin-guide/cgroup-v2.rst, cgroup-v1/)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Reads limits below `mount`. The strictest of a group and its ancestors holds."""

    mount: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def cpu_quota(self) -> float | None:
        """Cores' worth of CPU time, None without a quota."""
        found = [self._quota(level) for level in self._levels("cpu")]
        return min((quota for quota in found if quota is not None), default=None)

    def memory_bytes(self) -> int | None:
        """Bytes, None without a limit."""
        names = ("memory.max", "memory.limit_in_bytes")
        found = [_read(level / name) for level in self._levels("memory") for name in names]
        return min((int(words[0]) for words in found if words and words[0].isdigit()), default=None)

    def throttled_us(self) -> int:
        """Microseconds that the group's threads have been held back by its CPU quota so far; 0 where none is told."""
        for level in self._levels("cpu"):
            words = _read(level / "cpu.stat")
            figures = dict(zip(words[::2], words[1::2], strict=False))
            if "throttled_usec" in figures:
                return int(figures["throttled_usec"])
            if "throttled_time" in figures:  # version 1, nanoseconds
                return int(figures["throttled_time"]) // 1000
        return 0

    @staticmethod
    def _quota(level: Path) -> float | None:
        words = _read(level / "cpu.max") or _read(level / "cpu.cfs_quota_us") + _read(level / "cpu.cfs_period_us")
        if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit():  # "max", -1, or no such file
            return None
        return int(words[0]) / max(1, int(words[1]))

    def _levels(self, controller: str) -> Iterator[Path]:
        """The group's directory, then its ancestors'. A container often sees only the last, as the mount itself."""
        for line in self._memberships():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = self.mount / controller if controllers else self.mount
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for length in range(len(parts), -1, -1):
                yield base.joinpath(*parts[:length])

    def _memberships(self) -> list[str]:
        try:
            return [line for line in self.membership.read_text().splitlines() if line.count(":") >= 2]
        except OSError:
            return []


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
