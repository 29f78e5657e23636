"""A loop whose time the test moves on; what is due then is called in the next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class MovedLoop(asyncio.SelectorEventLoop):
    """Time stands still unless it is moved."""

    def __init__(self) -> None:
        self._moved_s = 1000.0
        super().__init__()

    def time(self) -> float:
        return self._moved_s

    def move(self, seconds: float) -> None:
        self._moved_s += seconds


def move(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MovedLoop)
    loop.move(seconds)


def run_moved(work: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=MovedLoop) as runner:
        runner.run(work())  # type: ignore[arg-type]
