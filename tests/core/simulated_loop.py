"""A loop whose clock moves only when nothing else can happen: sleeps cost nothing, and a hang is found."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
# In simulated seconds: no test has more to wait for than a few deadlines one after the other.
LONGEST_S = 600.0


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._moment = 0.0
        super().__init__(JumpingSelector(self))
        # What a dead process left waiting has to stay until the end: its destruction would be reported as a bug.
        self._kept: set[asyncio.Task[Any]] = set()
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **more)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    def time(self) -> float:
        return self._moment

    @property
    def has_ready(self) -> bool:
        """Something runs in the next turn, beside who asks."""
        return bool(self._ready)  # type: ignore[attr-defined]

    def jump(self, seconds: float) -> None:
        self._moment += seconds


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for the next timer it moves the clock there."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._clock = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("nothing can happen any more")
        if not events and timeout:
            self._clock.jump(timeout)
        return events


def simulate(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end. Raises TimeoutError after LONGEST_S of simulated time."""

    async def bounded() -> Result:
        try:
            async with asyncio.timeout(LONGEST_S):
                return await work
        finally:
            await _end_tasks_of_the_dead()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(bounded())


async def _end_tasks_of_the_dead() -> None:
    """A dead process's disk answers nothing: what closes a file when it is cancelled has to be cancelled once more."""
    for _ in range(3):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
