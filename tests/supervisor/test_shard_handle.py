"""Backoff, pinning and the shown address: what needs no server."""

import logging
import os
import subprocess
from collections.abc import Iterator

import pytest

from shardserver.errors import ConfigError
from shardserver.supervisor.huge_heap import with_huge_heap
from shardserver.supervisor.shard_handle import Backoff, pin_threads
from shardserver.supervisor.shard_process import pin
from shardserver.supervisor.sockets import listen, shown_address

NO_CORE = 1023


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0:glibc.malloc.check=3", "glibc.malloc.hugetlb=0:glibc.malloc.check=3"),
    ],
)
def test_a_shard_s_heap_asks_for_huge_pages_unless_told_otherwise(given: str | None, wanted: str) -> None:
    assert with_huge_heap(given) == wanted


def test_restarts_wait_longer_and_longer_and_begin_again_after_good_service() -> None:
    backoff = Backoff()
    assert [backoff.after(0.0) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.after(29.9) == 5.0
    assert [backoff.after(30.0), backoff.after(1.0)] == [0.1, 0.2]


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def test_a_process_that_left_its_core_is_put_back(sleeper: int) -> None:
    core = max(os.sched_getaffinity(0))
    assert pin_threads(sleeper, core) and os.sched_getaffinity(sleeper) == {core}


def test_a_core_that_is_not_there_is_refused_and_changes_nothing(
    sleeper: int, caplog: pytest.LogCaptureFixture
) -> None:
    ours = os.sched_getaffinity(0)
    assert not pin_threads(sleeper, NO_CORE) and os.sched_getaffinity(sleeper) == ours
    with caplog.at_level(logging.WARNING):
        assert pin(NO_CORE) is None
    assert caplog.messages == ["pinning_refused"] and os.sched_getaffinity(0) == ours
    assert pin(None) is None and caplog.messages == ["pinning_refused"]


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    (listening,) = listen("127.0.0.1", 0, 1)
    with listening:
        assert shown_address(listening) == f"127.0.0.1:{listening.getsockname()[1]}"
    try:
        (listening,) = listen("::1", 0, 1)
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    with listening:
        assert shown_address(listening) == f"[::1]:{listening.getsockname()[1]}"
