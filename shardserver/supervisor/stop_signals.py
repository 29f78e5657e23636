"""SIGTERM, SIGINT and SIGCHLD as bytes in a pipe, and the duties of process 1."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Set

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})


class StopSignals:
    """Caught from the making of this object on: process 1 would never get a signal that it does not catch."""

    def __init__(self) -> None:
        self.readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (*STOPPING, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def take(self) -> int:
        """Number of stop signals that have arrived; a SIGCHLD only wakes the reader."""
        try:
            return sum(number in STOPPING for number in os.read(self.readable, 512))
        except BlockingIOError:
            return 0


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Stop signals wait: a child spawned inside inherits the mask, until it has said what it does with them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def ignore() -> None:
    """In a shard: a terminal's signals reach the whole group, but the supervisor alone decides."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def reap_orphans(ours: Set[int | None]) -> None:
    """As process 1 the server inherits the orphans of its container. Exits of `ours` are left to their owner."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in ours:  # ours is taken in the same round: its sentinel is readable
            return
        os.waitpid(found.si_pid, 0)
