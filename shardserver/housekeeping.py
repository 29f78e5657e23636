"""What a shard does again and again beside its requests: retention, free space, silent clients; healing of a device."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from shardserver.config import Config
from shardserver.core.groups.heartbeats import Heartbeats
from shardserver.core.sessions import Sessions
from shardserver.core.total_retention import enforce_total
from shardserver.errors import StorageError
from shardserver.net.listener import Listener
from shardserver.storage.healing import replace_journal
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.space import SpaceWatch
from shardserver.supervisor.shard_exit import ShardExit

log = logging.getLogger(__name__)

SPACE_LOOK_S = 1.0
NO_CLEANER_LOOK_S = 10.0
HEALING_S = 30.0
# Peers ask again as soon as this process says that it serves.
ASKED_AGAIN_S = 60.0


class Housekeeping:
    """Of one shard that serves. config: gives the present one, as a reload may have changed it. space: likewise."""

    def __init__(
        self,
        shard: int,
        config: Callable[[], Config],
        space: Callable[[], SpaceWatch],
        logs: ShardLog,
        listener: Listener,
        sessions: Sessions,
    ) -> None:
        self._shard, self._config, self._space = shard, config, space
        self._logs, self._listener, self._sessions = logs, listener, sessions

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """To run side by side until the shard ends."""
        return [self._retain(), self._settle_answers(), self._watch_space(), self._watch_heartbeats()]

    async def _settle_answers(self) -> None:
        """Peers have asked again for all that the former process did not answer, and we have answered it by then."""
        await asyncio.sleep(ASKED_AGAIN_S)
        self._logs.resources.hooks.answers_are_known = True

    async def _watch_space(self) -> None:
        while True:
            try:
                await self._space().look()
            except StorageError as error:
                log.warning("free_space_unknown", extra={"fields": {"error": str(error)}})
            await asyncio.sleep(SPACE_LOOK_S)

    async def _watch_heartbeats(self) -> None:
        heartbeats = Heartbeats(self._sessions, self._config().groups.heartbeat_interval_s, time.monotonic)
        while True:
            await asyncio.sleep(self._config().groups.heartbeat_interval_s / 5)
            heartbeats.look({client.connection.client_id: client.wire.frames for client in self._listener.clients})
            for client in self._listener.clients:
                if client.connection.ended_by:  # by a route that it knows it would be answered without a session
                    client.wire.forget_routes()

    async def _retain(self) -> None:
        while True:
            interval_s = self._config().storage.retention_interval_s
            await asyncio.sleep(interval_s or NO_CLEANER_LOOK_S)
            if not interval_s:  # a reload may give one
                continue
            deleted = await self._logs.retention.look()
            deleted += await self._enforce_total()
            if deleted:
                log.info("segments_expired", extra={"fields": {"segments": deleted}})

    async def _enforce_total(self) -> int:
        boards, limit = self._listener.balance.boards, self._config().storage.max_total_bytes
        try:
            return await enforce_total(limit, self._logs, boards[self._shard], list(boards.values()))
        except StorageError as error:
            log.warning("retention_failed", extra={"fields": {"error": str(error)}})
            return 0


async def heal(shard: int, logs: ShardLog) -> NoReturn:
    """Try a new journal again and again; with one, end: the next start serves as usual."""
    while True:
        await asyncio.sleep(HEALING_S)
        try:
            await replace_journal(logs)
        except StorageError as error:
            log.warning("still_read_only", extra={"fields": {"error": str(error)}})
        else:
            log.warning("device_writable_again", extra={"fields": {"shard": shard}})
            os._exit(ShardExit.HEALED)
