"""What the chaos test stands on: a clock that steps for a child alone, and measures that see a leak and a loss."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.chaos.bulk import STREAM, TOPIC, Bulk
from tests.chaos.chaos_test import grown
from tests.chaos.crowd import HALF_OPEN, Crowd
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

ASK = "import time; print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_REALTIME))"


def test_a_step_is_seen_by_the_child_in_its_clock_of_the_day_only(tmp_path: Path) -> None:
    from tests.chaos.stepped_clock import SteppedClock

    clock = SteppedClock(tmp_path)
    for by_s in (-3600, 90_000):
        clock.step(by_s)
        done = subprocess.run([*clock.wrapper, sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
        day, monotonic, realtime = map(float, done.stdout.split())
        assert abs(day - time.time() - clock.step_s) < 60 and abs(day - realtime) < 1
        assert abs(monotonic - time.monotonic()) < 60


def test_growth_is_that_of_the_last_quarter_beside_the_second() -> None:
    assert grown([900, 900, 100, 110, 100, 100, 100, 110]) == 0
    assert grown([100, 100, 100, 100, 150, 150, 200, 200]) == 100


def test_the_judge_of_the_compiled_load_sees_a_loss_and_the_crowd_is_counted(tmp_path: Path) -> None:
    server = ShardedServer(tmp_path, cores=1).serve()
    try:
        bulk, counts = Bulk(), Counter[str]()
        bulk.create(server.address)
        crowd = Crowd(counts, 5)
        crowd.open(server.address)
        bulk._run(server.address, time.monotonic_ns() + 200_000_000)
        crowd.close()
        assert counts["silent connections"] == 5 and counts["half-open connections"] == HALF_OPEN
        assert bulk.acknowledged > 0 and bulk.judge(server.address) == (0, [])
        with WireConnection(server.address) as one:
            one.purge_topic(STREAM, TOPIC)
        assert bulk.judge(server.address) == (bulk.acknowledged, [])
    finally:
        server.kill()
