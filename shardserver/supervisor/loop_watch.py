"""Which stalls a shard's loop has, and why: event `shard_stalled`, with numbers.

A timer of the loop compares the time with the time that it was due. While the loop is busy it comes every 50 ms, so
that a stall of 100 ms is always seen and one above 50 ms mostly; an idle loop is looked at once a second, as nothing
runs there that could stall it. What ran is told by faulthandler, whose handler of SIGALRM needs no GIL and writes the
stack into memory; a kernel timer, set anew with each look (one system call), sends the signal when the loop has not
come back. Rejected: a Python thread that looks, which would wait for the GIL; faulthandler's own timer, which makes a
thread each time it is set (56 us of CPU, and up to 0.3 ms until that has begun).
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shardserver.storage.event_rate import EventRate
from shardserver.supervisor.cgroup import Cgroup

log = logging.getLogger(__name__)

STALL_S = 0.05
BUSY_INTERVAL_S, IDLE_INTERVAL_S = 0.05, 1.0
# A loop that computes for more than this part of the time is busy.
BUSY_SHARE = 0.02
# The cgroup's figures cost more than all others together.
THROTTLE_EVERY = 20
MAX_FRAMES, MAX_STACK_BYTES = 6, 1 << 16


@dataclass(frozen=True, slots=True)
class Usage:
    """Of the loop's thread since its start: seconds on a core, and seconds that it waited for one, able to run."""

    cpu_s: float
    run_queue_s: float


class Sampler(Protocol):
    """Who notes what runs, when the loop does not come back in time."""

    def arm(self, seconds: float) -> None: ...
    def disarm(self) -> None: ...
    def take(self) -> str: ...
    def close(self) -> None: ...


class StackSampler:
    """Owned by the main thread, which runs the loop: the kernel gives it the signal. One in a process."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("stalled-stack", os.MFD_CLOEXEC)
        faulthandler.register(signal.SIGALRM, file=self._memory, all_threads=False)

    def arm(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def take(self) -> str:
        """The frames of the loop's thread when it was last late, innermost first; empty: nothing was noted."""
        raw = os.pread(self._memory, MAX_STACK_BYTES, 0)
        os.ftruncate(self._memory, 0)
        os.lseek(self._memory, 0, os.SEEK_SET)
        return innermost_frames(raw.decode(errors="replace"))

    def close(self) -> None:
        self.disarm()
        faulthandler.unregister(signal.SIGALRM)
        os.close(self._memory)


def innermost_frames(dumped: str) -> str:
    """Of the last stack that faulthandler has dumped: `work in core/some.py:12 < ...`."""
    found = []
    for line in dumped.rpartition("Stack (most recent call first):")[2].splitlines():
        path, _, rest = line.removeprefix('  File "').partition('", line ')
        number, _, function = rest.partition(" in ")
        if function:
            found.append(f"{function} in {'/'.join(path.split('/')[-2:])}:{number}")
    return " < ".join(found[:MAX_FRAMES])


class UsageReader:
    """schedstat: /proc/<pid>/schedstat (kernel: scheduler/sched-stats.rst), of the thread group's leader."""

    def __init__(self) -> None:
        try:
            self._schedstat = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without it
            self._schedstat = -1

    def __call__(self) -> Usage:
        words = os.pread(self._schedstat, 128, 0).split() if self._schedstat >= 0 else []
        return Usage(time.thread_time(), int(words[1]) / 1e9 if len(words) > 1 else 0.0)


class LoopWatch:
    """Owned by one shard's loop. clock: seconds; throttled_us: of the cgroup so far."""

    def __init__(
        self,
        shard: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        usage: Callable[[], Usage] | None = None,
        throttled_us: Callable[[], int] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._shard, self._clock = shard, clock
        self._usage, self._throttled_us = usage or UsageReader(), throttled_us or Cgroup().throttled_us
        self._sampler = sampler or StackSampler()
        self._rate = EventRate(clock=clock)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._ticks = 0
        self._last = Usage(0.0, 0.0)
        self._last_throttled_us = 0

    def start(self) -> None:
        self._last, self._last_throttled_us = self._usage(), self._throttled_us()
        self._wait(IDLE_INTERVAL_S)

    def _wait(self, interval_s: float) -> None:
        self._due = self._clock() + interval_s
        self._timer = asyncio.get_running_loop().call_later(interval_s, self.tick)

    def stop(self) -> None:
        """Before the process ends: without faulthandler's handler the signal would kill it."""
        if self._timer is not None:
            self._timer.cancel()
        self._sampler.close()

    def tick(self) -> None:
        late_s, usage = self._clock() - self._due, self._usage()
        cpu_s, waited_s = usage.cpu_s - self._last.cpu_s, usage.run_queue_s - self._last.run_queue_s
        self._last = usage
        if late_s > STALL_S:
            self._tell(late_s, cpu_s, waited_s)
        elif late_s > STALL_S / 2:
            self._sampler.take()  # the timer may have been a little faster
        self._ticks += 1
        if self._ticks % THROTTLE_EVERY == 0:
            self._last_throttled_us = self._throttled_us()
        is_busy = cpu_s > BUSY_SHARE * BUSY_INTERVAL_S
        if is_busy:
            self._sampler.arm(BUSY_INTERVAL_S + STALL_S)
        else:
            self._sampler.disarm()
        self._wait(BUSY_INTERVAL_S if is_busy else IDLE_INTERVAL_S)

    def _tell(self, late_s: float, cpu_s: float, waited_s: float) -> None:
        ran, throttled_us = self._sampler.take(), self._throttled_us()
        left_out = self._rate.take()
        if left_out is not None:
            fields = {
                "shard": self._shard,
                "stalled_ms": round(late_s * 1e3),
                "cpu_ms": round(cpu_s * 1e3),
                "run_queue_ms": round(waited_s * 1e3),
                "throttled_ms": round((throttled_us - self._last_throttled_us) / 1e3),
                "ran": ran or "unknown",
                "left_out": left_out,
            }
            log.warning("shard_stalled", extra={"fields": fields})
        self._last_throttled_us = throttled_us
