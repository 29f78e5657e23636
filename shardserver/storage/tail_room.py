"""Room for new batches in a shard's arena: what is only cached there makes way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shardserver.errors import ArenaFullError
from shardserver.memory.arena import Block
from shardserver.memory.buffers import Buffer
from shardserver.storage.resources import LogResources
from shardserver.storage.tail import Tail
from shardserver.storage.turn import Turn

# So much of the cache goes at a time when the arena is full, or the next append would have to look again.
LEAST_DROP_BYTES = 1 << 20
LET_GO_AT_ONCE = 4096  # batches: about a millisecond
ALL_OFFSETS = (1 << 64) - 1


class TailRoom:
    """Owned by one shard. on_full: told when all that is in the arena is needed."""

    def __init__(self, resources: LogResources, turn: Turn, on_full: Callable[[], None]) -> None:
        self._resources, self._turn, self._on_full = resources, turn, on_full
        self._goes_on = False
        self._leaving = asyncio.Lock()

    def copy(self, batch: Buffer) -> Block:
        """The batch in the arena. Raises ArenaFullError: all that is there is needed."""
        while True:
            try:
                return self._resources.memory.copy(batch)
            except ArenaFullError:
                if not self._drop_cached(len(batch)):
                    self._on_full()
                    raise

    def _drop_cached(self, size: int) -> bool:
        """Let go of about size bytes that disk has too; False: there was nothing."""
        before = self._turn.tails.bytes
        self._turn.evict_to(max(0, before - max(size, LEAST_DROP_BYTES)))
        return self._turn.tails.bytes < before or self._resources.walks.drop_oldest()

    def evict_after_runs(self) -> None:
        """Down to the setting: what has come into segments may go. Of much, a part in each turn of the loop."""
        is_done = self._turn.evict_to(self._resources.settings.tail_bytes)
        if not is_done and not self._goes_on:
            self._goes_on = True
            asyncio.get_running_loop().call_soon(self._go_on)

    async def let_go(self, tail: Tail) -> None:
        """Of a partition that is not served here any more, in parts as well, and of many that go together in turn."""
        async with self._leaving:
            while tail.first_offset is not None:
                for _ in range(LET_GO_AT_ONCE):
                    tail.evict_oldest(ALL_OFFSETS)
                await asyncio.sleep(0)

    def _go_on(self) -> None:
        self._goes_on = False
        self.evict_after_runs()
