"""Committed offsets that recovery has cut are in the journal before anything is appended (rule 13).

A run makes a log grow past them without the journal, and a crash then would bring back the offsets as they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shardserver.errors import DiskFullError
from shardserver.storage.committed_offsets import CommittedOffsets
from shardserver.storage.resources import LogResources


class CutOffsets:
    """Of one shard. publish(): returns when one more journal write has ended. is_over(): there will be none."""

    def __init__(
        self,
        offsets: CommittedOffsets,
        resources: LogResources,
        publish: Callable[[], Awaitable[None]],
        is_over: Callable[[], bool],
    ) -> None:
        self._offsets, self._resources, self._publish, self._is_over = offsets, resources, publish, is_over
        self._cut = list(offsets.waiting.values())
        self._later: asyncio.Future[None] | None = None

    async def begin(self, full: DiskFullError | None) -> None:
        """Returns when they are durable. full: the ring may be full too, so appends are refused with it until then."""
        if full is None:
            await self._publish_all()
        elif self._cut:
            self._resources.admission.refusal = full
            self._later = asyncio.ensure_future(self._take_appends_after(full))

    async def _publish_all(self) -> None:
        while any(self._offsets.waiting.get(one.key) is one for one in self._cut) and not self._is_over():
            await self._publish()

    async def _take_appends_after(self, refusal: DiskFullError) -> None:
        await self._publish_all()
        if not self._is_over():
            await self._publish()  # the write that carries the last of them may be in flight
        if self._resources.admission.refusal is refusal:
            self._resources.admission.refusal = None

    async def end(self) -> None:
        if self._later is not None:
            await self._later
