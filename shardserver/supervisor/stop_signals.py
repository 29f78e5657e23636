"""SIGTERM, SIGINT, SIGHUP and SIGCHLD as bytes in a pipe, and the duties of process 1."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Set
from typing import NamedTuple

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
# A shard leaves all of them to the supervisor.
OURS = STOPPING | {signal.SIGHUP}


class Arrived(NamedTuple):
    """stops: how many signals ask for the end. reload: one or more ask for the configuration to be read again."""

    stops: int
    reload: bool


class StopSignals:
    """Caught from the making of this object on: process 1 would never get a signal that it does not catch."""

    def __init__(self) -> None:
        self.readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (*OURS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def take(self) -> Arrived:
        """What has arrived since the last call; a SIGCHLD only wakes the reader."""
        try:
            numbers = os.read(self.readable, 512)
        except BlockingIOError:
            numbers = b""
        return Arrived(sum(number in STOPPING for number in numbers), signal.SIGHUP in numbers)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Signals wait: a child spawned inside inherits the mask, until it has said what it does with them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)


def ignore() -> None:
    """In a shard: a terminal's signals reach the whole group, but the supervisor alone decides."""
    for number in OURS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)


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
