"""How a load is getting on: one line a second on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """At a moment (CLOCK_MONOTONIC, ns): what was counted since the begin, and what since the report before."""

    start_ns: int
    now_ns: int
    sums: tuple[int, ...]
    since_s: float = 0.0
    gained: tuple[int, ...] = (0, 0, 0)

    @classmethod
    def begin(cls, start_ns: int) -> Progress:
        return cls(start_ns, start_ns, (0, 0, 0))

    def advance(self, now_ns: int, sums: Sequence[int]) -> Progress:
        """sums: answers, messages, bytes."""
        gained = tuple(new - old for new, old in zip(sums, self.sums, strict=True))
        return Progress(self.start_ns, now_ns, tuple(sums), (now_ns - self.now_ns) / 1e9, gained)

    @property
    def line(self) -> str:
        answers, messages, size = (value / self.since_s for value in self.gained)
        elapsed_s = (self.now_ns - self.start_ns) / 1e9
        return f"{elapsed_s:6.0f} s {answers:12.0f} requests/s {messages:12.0f} messages/s {size / 1e6:10.1f} MB/s"


def no_progress(progress: Progress) -> None:
    """Nobody watches."""


def show_progress(progress: Progress) -> None:
    print(f"\r{progress.line}", end="", file=sys.stderr, flush=True)


def end_progress() -> None:
    print(file=sys.stderr)
