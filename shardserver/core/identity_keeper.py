"""Keeps the identity files of a shard's partitions as the metadata says, in the background, one after another.

A crash may leave one that is older than the metadata, and former versions have left none; so a start looks at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from shardserver.errors import StorageError
from shardserver.storage.shard_log import ShardLog

log = logging.getLogger(__name__)

# A look costs about half a millisecond of the loop's time: at most 3 % of it.
PAUSE_S, RETRY_S = 0.02, 5.0


class IdentityKeeper:
    """Owned by one shard's loop. logs: None while it recovers."""

    def __init__(self, logs: Callable[[], ShardLog | None]) -> None:
        self._logs = logs
        self._due: dict[int, None] = {}
        self._task: asyncio.Task[None] | None = None

    def look_at(self, uids: Iterable[int]) -> None:
        """Soon; what is not there, or has no directory, needs no look."""
        self._due.update(dict.fromkeys(uids))
        if self._due and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def idle(self) -> None:
        """Until all that were to be looked at have been."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._due:
                uid = next(iter(self._due))
                del self._due[uid]
                await self._keep(uid)
        finally:
            self._task = None

    async def _keep(self, uid: int) -> None:
        logs = self._logs()
        partition = logs.find_partition(uid) if logs is not None else None
        if logs is None or logs.failed is not None or partition is None or not partition.keeps_identity:
            return  # whoever owns it, or gives it its directory, writes it
        try:
            await partition.keep_identity()
            await asyncio.sleep(PAUSE_S)
        except StorageError as error:  # a full disk, or it was deleted meanwhile
            log.warning("identity_not_written", extra={"fields": {"partition": uid, "error": str(error)}})
            self._due[uid] = None
            await asyncio.sleep(RETRY_S)
