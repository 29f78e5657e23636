"""How loads fade: on a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.core import load as load_module
from shardserver.core.load import DECAY_S, LoadMeter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_nobody_asked_has_no_load() -> None:
    meter = LoadMeter(Clock())
    meter.count_bytes(1, 500)  # its partition was forgotten meanwhile
    assert meter.per_second(1) == (0.0, 0.0)


def test_a_minute_ago_counts_a_third() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    for _ in range(60):
        meter.count(7, 1000)
    meter.count_bytes(7, 30_000)
    assert meter.per_second(7) == (1.0, 1500.0)
    clock.now += DECAY_S
    assert meter.per_second(7) == pytest.approx((math.exp(-1), 1500 * math.exp(-1)))
    clock.now += 20 * DECAY_S
    assert meter.per_second(7)[1] < 0.001


def test_a_steady_load_is_shown_as_what_it_is() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    for _ in range(100 * 600):
        clock.now += 0.01
        meter.count(1, 200)
    assert meter.per_second(1) == pytest.approx((100, 20_000), rel=0.01)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=10))
def test_looking_changes_nothing(steps: list[float]) -> None:
    clock = Clock()
    looked_at, left_alone = LoadMeter(clock), LoadMeter(clock)
    for meter in (looked_at, left_alone):
        meter.count(1, 1000)
    for step in steps:
        clock.now += step
        looked_at.per_second(1)
    assert looked_at.per_second(1) == pytest.approx(left_alone.per_second(1))


def test_partitions_are_apart_and_a_forgotten_one_begins_anew() -> None:
    meter = LoadMeter(Clock())
    meter.count(1, 600)
    meter.count(2, 1200)
    meter.forget(1)
    meter.forget(3)
    assert meter.per_second(1) == (0.0, 0.0) and meter.per_second(2) == (1 / 60, 20.0)
    meter.count(1, 60)
    assert meter.per_second(1) == (1 / 60, 1.0)


def test_the_busiest_are_those_that_are_asked_now_with_all_that_they_were_ever_asked() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    meter.add(1, 1000, 10)
    clock.now += 20 * DECAY_S
    meter.add(2, 5, 50)
    meter.count(3, 100 * load_module.BYTES_WEIGHT)
    meter.count_bytes(3, 7)
    assert meter.busiest(2) == [(3, 1, 100 * load_module.BYTES_WEIGHT + 7), (2, 5, 50)]
    assert meter.busiest(9)[2] == (1, 1000, 10)


def test_the_share_of_a_busy_process_rises_to_one_and_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    used, clock = Clock(), Clock()
    monkeypatch.setattr(load_module.time, "process_time", used)
    meter = LoadMeter(clock)
    assert meter.busy_share() == 0.0
    for _ in range(600):
        clock.now += 1.0
        used.now += 1.0
        share = meter.busy_share()
    assert share == pytest.approx(1.0, abs=0.001)
    assert meter.busy_share() == share  # no time has passed
    clock.now += DECAY_S
    assert meter.busy_share() == pytest.approx(math.exp(-1), abs=0.001)
