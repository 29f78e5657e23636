"""Stalls of a loop: seen on a clock that the test moves, and once for real."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import Any

import pytest

from shardserver.storage.event_rate import EventRate
from shardserver.supervisor.loop_watch import (
    BUSY_INTERVAL_S,
    IDLE_INTERVAL_S,
    LoopWatch,
    StackSampler,
    Usage,
    innermost_frames,
)

DUMP = """Stack (most recent call first):
  File "/srv/shardserver/old.py", line 1 in before
Stack (most recent call first):
  File "/srv/shardserver/core/slow.py", line 12 in compute
  File "/srv/shardserver/server.py", line 90 in run
"""


class World:
    """A watch whose clock, usage and sampler are the test's."""

    def __init__(self) -> None:
        self.now, self.cpu_s, self.waited_s, self.throttled_us = 100.0, 0.0, 0.0, 0
        self.armed: list[float] = []
        self.waits: list[float] = []
        self.watch = LoopWatch(
            3,
            clock=lambda: self.now,
            usage=lambda: Usage(self.cpu_s, self.waited_s),
            throttled_us=lambda: self.throttled_us,
            sampler=self,
        )
        self.watch._wait = self._wait  # type: ignore[method-assign]
        self.watch.start()

    def arm(self, seconds: float) -> None:
        self.armed.append(seconds)

    def disarm(self) -> None:
        self.armed.append(0.0)

    def close(self) -> None:
        self.armed.append(0.0)

    def take(self) -> str:
        return "compute in core/slow.py:12"

    def _wait(self, interval_s: float) -> None:
        self.waits.append(interval_s)
        self.watch._due = self.now + interval_s

    def tick(self, *, late_s: float = 0.0, cpu_s: float = 0.0, waited_s: float = 0.0, throttled_us: int = 0) -> None:
        self.now = self.watch._due + late_s
        self.cpu_s += cpu_s
        self.waited_s += waited_s
        self.throttled_us += throttled_us
        self.watch.tick()


def stalls(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [one.fields for one in caplog.records if one.message == "shard_stalled"]  # type: ignore[attr-defined]


def test_a_late_timer_is_a_stall_with_its_numbers(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.tick(late_s=0.049)
    assert stalls(caplog) == []
    world.tick(late_s=0.2, cpu_s=0.1, waited_s=0.06, throttled_us=40_000)
    assert stalls(caplog) == [
        {"shard": 3, "stalled_ms": 200, "cpu_ms": 100, "run_queue_ms": 60, "throttled_ms": 40,
         "ran": "compute in core/slow.py:12", "left_out": 0}
    ]  # fmt: skip


def test_stalls_are_logged_at_a_bounded_rate_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for _ in range(11):  # 1.1 s each
        world.tick(late_s=0.1)
    assert [one["left_out"] for one in stalls(caplog)] == [0, 9]


def test_a_busy_loop_is_looked_at_often_and_an_idle_one_rarely() -> None:
    world = World()
    world.tick(cpu_s=0.01)
    world.tick(cpu_s=0.0)
    assert world.waits == [IDLE_INTERVAL_S, BUSY_INTERVAL_S, IDLE_INTERVAL_S]
    assert world.armed[0] > BUSY_INTERVAL_S and world.armed[1] == 0.0


def test_the_frames_of_the_last_stack_are_told_innermost_first() -> None:
    assert innermost_frames(DUMP) == "compute in core/slow.py:12 < run in shardserver/server.py:90"
    assert innermost_frames("") == ""


def test_what_held_a_real_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def hold_the_loop() -> None:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            pass

    async def run() -> None:
        sampler = StackSampler()
        watch = LoopWatch(0, sampler=sampler)
        watch.start()
        watch._wait(0.0)
        sampler.arm(0.1)
        asyncio.get_running_loop().call_soon(hold_the_loop)
        while not stalls(caplog):
            await asyncio.sleep(0)
        watch.stop()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(run(), 30))
    found = stalls(caplog)[0]
    assert "hold_the_loop in supervisor/test_loop_watch.py" in found["ran"]
    assert found["stalled_ms"] >= 300 and found["throttled_ms"] >= 0 and found["run_queue_ms"] >= 0


def test_an_event_rate_lets_one_through_and_counts_the_others() -> None:
    now = 0.0
    rate = EventRate(10.0, lambda: now)
    taken = []
    for now in (0.0, 1.0, 9.9, 10.0, 25.0):  # noqa: B007 - the clock
        taken.append(rate.take())
    assert taken == [0, None, None, 2, 0]
