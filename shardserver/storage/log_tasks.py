"""The background work of one shard's logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from shardserver.errors import StorageError

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class LogTasks:
    """Owned by one shard. on_bug: told when work that was started ended with an error."""

    def __init__(self, on_bug: Callable[[StorageError], None]) -> None:
        self._on_bug = on_bug
        self.running: set[asyncio.Task[None]] = set()
        self._shielded: dict[object, asyncio.Task[Any]] = {}

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("log_task_failed", exc_info=task.exception())
        self._on_bug(StorageError(f"a log task failed: {task.exception()!r}"))

    async def wait_idle(self) -> None:
        """Wait for those that are running now; work that was shielded is not among them."""
        tasks = [task for task in self.running if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks)

    async def shield(self, work: Coroutine[Any, Any, Result], subjects: Sequence[object] = ()) -> Result:
        """To its end even when the caller is cancelled: a descriptor that is being opened must not be lost.

        subjects: what it works on, for shielded_of.
        """
        task = asyncio.get_running_loop().create_task(work)
        keys: list[object] = [*subjects] or [task]
        self._shielded.update(dict.fromkeys(keys, task))

        def ended(task: asyncio.Task[Result]) -> None:
            for key in keys:
                del self._shielded[key]
            if not task.cancelled():
                task.exception()  # nobody hears of it when the caller was cancelled

        task.add_done_callback(ended)
        return await asyncio.shield(task)

    def shielded_of(self, subjects: Iterable[object]) -> set[asyncio.Task[Any]]:
        """Shielded work on one of them that has not ended."""
        return {self._shielded[one] for one in subjects if one in self._shielded}

    async def end_shielded(self) -> None:
        if self._shielded:
            await asyncio.wait(set(self._shielded.values()))
