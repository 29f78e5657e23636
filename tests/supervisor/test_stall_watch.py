"""The watch-dog, on a clock and boards that the test moves."""

import pytest

from shardserver.supervisor.stall_watch import Silence, StallWatch, beat_interval_s


def looks_until_stalled(watch: StallWatch, beats: list[int], *, is_ready: bool) -> int:
    """Which look of them finds a stall; 0: none."""
    silence = Silence()
    for number, found in enumerate(beats, 1):
        if watch.is_stalled(silence, found, is_ready=is_ready):
            return number
    return 0


def test_a_beat_that_stands_still_for_the_limit_is_a_stall() -> None:
    watch = StallWatch(10.0, 120.0, 0.0)
    assert looks_until_stalled(watch, [1, 2, 3, 3, 3, 3, 3], is_ready=True) == 7  # four looks of 2.5 s
    assert looks_until_stalled(watch, [1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5], is_ready=True) == 0


def test_a_recovering_shard_has_the_longer_limit() -> None:
    watch = StallWatch(10.0, 120.0, 0.0)
    assert looks_until_stalled(watch, [5] * 48, is_ready=False) == 0
    assert looks_until_stalled(watch, [5] * 49, is_ready=False) == 49


def test_a_shard_whose_loop_never_ran_is_judged_too() -> None:
    assert looks_until_stalled(StallWatch(10.0, 120.0, 0.0), [0] * 60, is_ready=False) == 48


def test_a_supervisor_that_was_suspended_has_lived_through_one_look() -> None:
    watch, silence = StallWatch(10.0, 120.0, 0.0), Silence()
    assert watch.is_due(2.5) and not watch.is_stalled(silence, 7, is_ready=True)
    assert watch.is_due(100_000.0) and not watch.is_stalled(silence, 7, is_ready=True)
    assert not watch.is_due(100_000.1) and watch.next_look_at == 100_002.5
    assert silence.seconds == 2.5


def test_the_limits_are_off_at_0() -> None:
    off = StallWatch(0.0, 0.0, 0.0)
    assert off.next_look_at is None and not off.is_due(1e9)
    assert looks_until_stalled(StallWatch(0.0, 8.0, 0.0), [1] * 99, is_ready=True) == 0
    assert looks_until_stalled(StallWatch(0.0, 8.0, 0.0), [1] * 99, is_ready=False) == 5


@pytest.mark.parametrize(("limits", "interval_s"), [((10.0, 120.0), 2.5), ((0.0, 120.0), 30.0), ((8.0, 0.0), 2.0)])
def test_shards_beat_four_times_in_the_shorter_limit(limits: tuple[float, float], interval_s: float) -> None:
    assert beat_interval_s(*limits) == interval_s
