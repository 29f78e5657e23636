"""CPU time and placement of processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of all threads of these processes together, in steps of one tick (mostly 10 ms).

    From fields 14 and 15 of /proc/PID/stat, proc_pid_stat(5). Raises FileNotFoundError when one has ended.
    """
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            # The command's name, in brackets, may hold anything: fields are counted from behind it.
            fields = file.read().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def sleep_until(moment_ns: int) -> None:
    """moment_ns: CLOCK_MONOTONIC."""
    time.sleep(max(0, moment_ns - time.monotonic_ns()) / 1e9)


def cores_beside(taken: Iterable[int]) -> list[int]:
    """Cores that this process may use and that are not taken; all of them when none is left."""
    usable = os.sched_getaffinity(0)
    return sorted(usable - set(taken) or usable)


def private_memory_bytes(pid: int) -> int:
    """Resident memory without what is shared by memfd, such as arenas: RssAnon + RssFile of proc_pid_status(5)."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
