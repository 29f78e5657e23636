"""CPU shares on a clock that the test moves."""

from __future__ import annotations

from shardserver.core.cpu_share import LEAST_INTERVAL_S, CpuShare


def test_a_share_is_that_since_it_was_asked_before_and_a_quick_second_question_gets_the_same() -> None:
    now, measured = 0.0, iter([0.0, 50.0, 20.0])
    share = CpuShare(lambda: next(measured), lambda: now)
    now += LEAST_INTERVAL_S
    assert share.percent() == 50.0
    now += LEAST_INTERVAL_S / 2
    assert share.percent() == 50.0
    now += LEAST_INTERVAL_S / 2
    assert share.percent() == 20.0
