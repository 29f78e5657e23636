"""What the chaos test stands on: a clock that steps for a child alone, and measures that see a leak and a loss."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from shardserver.protocol.batch import read_batch_header
from tests.chaos.bulk import STREAM, TOPIC, Bulk
from tests.chaos.chaos_test import grown
from tests.chaos.crowd import HALF_OPEN, Crowd
from tests.chaos.stepped_clock import SteppedClock
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

ASK = "import time; print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_REALTIME))"


def test_a_step_is_seen_by_the_child_in_its_clock_of_the_day_only(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    for by_s in (-3600, 90_000):
        clock.step(by_s)
        done = subprocess.run([*clock.wrapper, sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
        day, monotonic, realtime = map(float, done.stdout.split())
        assert abs(day - time.time() - clock.step_s) < 60 and abs(day - realtime) < 1
        assert abs(monotonic - time.monotonic()) < 60


def stored_at_s(one: WireConnection) -> float:
    """When the server stored the first message of partition 0, by its clock."""
    return read_batch_header(one.poll(STREAM, TOPIC, 0, 0, 1).batches).base_timestamp / 1e6


def test_growth_is_that_of_the_last_quarter_beside_the_second() -> None:
    assert grown([900, 900, 100, 110, 100, 100, 100, 110]) == 0
    assert grown([100, 100, 100, 100, 150, 150, 200, 200]) == 100


def test_a_loss_is_seen_the_crowd_is_counted_and_a_step_of_the_clock_arrives_in_the_server(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    server = ShardedServer(tmp_path, cores=1, wrapper=clock.wrapper).serve()
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
            assert abs(stored_at_s(one) - time.time()) < 60
            one.purge_topic(STREAM, TOPIC)
            assert bulk.judge(server.address) == (bulk.acknowledged, [])
            clock.step(90_000)
            one.send_payloads(TOPIC, 0, b"a day later", stream=STREAM)
            assert abs(stored_at_s(one) - time.time() - 90_000) < 60
    finally:
        server.kill()
