"""Who gives way: by the length of its slice, or, in the background where the kernel does not do that, SCHED_IDLE."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardserver import time_slice
from shardserver.time_slice import lengthen_slice, send_to_background

SLICES_SINCE = (6, 12)


@pytest.fixture
def process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as made:
        try:
            yield made.pid
        finally:
            made.kill()


def test_it_gives_way_by_a_long_slice_where_the_kernel_has_slices(process: int) -> None:
    send_to_background(process)
    kernel = tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])
    if kernel >= SLICES_SINCE and platform.machine() in time_slice.CALLS:
        assert os.sched_getscheduler(process) == os.SCHED_OTHER
        assert os.getpriority(os.PRIO_PROCESS, process) == time_slice.LEAST_NICE
        assert lengthen_slice(process, time_slice.LEAST_NICE)
    else:
        assert os.sched_getscheduler(process) == os.SCHED_IDLE


@pytest.mark.parametrize("calls", [{}, {platform.machine(): (-1, -1)}], ids=["another machine", "the kernel refuses"])
def test_it_is_idle_where_it_cannot_be_told_otherwise(
    process: int, calls: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "CALLS", calls)
    send_to_background(process)
    assert os.sched_getscheduler(process) == os.SCHED_IDLE


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroup")
def test_its_session_has_the_least_share(process: int) -> None:
    """Within a share like that of the others it kept the workers waiting that had just had theirs."""
    before = AUTOGROUP.read_text()
    deadline = time.monotonic() + 10
    while not Path(f"/proc/{process}/autogroup").read_text().endswith(f"nice {time_slice.LEAST_NICE}\n"):
        send_to_background(process)  # who is not root may do it ten times a second, all together
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert AUTOGROUP.read_text() == before, "not the caller's"


def test_one_that_is_gone_is_an_error() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
        with pytest.raises(OSError, match="process"):
            send_to_background(ended.pid)
