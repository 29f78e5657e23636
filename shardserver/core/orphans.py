"""Shards that a start with fewer cores has left without a process: their logs are opened once more, to be given away.

Recovered under the old placement, by shard 0 before anybody is served; then they are moved like any other (custody.py),
and the directory of the shard is removed when the metadata names it no more (storage rule 18).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from shardserver.core.custody import Arrival, Released
from shardserver.errors import StorageError
from shardserver.storage.disk import Disk
from shardserver.storage.reserve import reserve_path
from shardserver.storage.shard_directories import orphan_shards, remove_shard_directory, remove_the_rest
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted

log = logging.getLogger(__name__)


class Orphan:
    """The custodian of one shard that is gone. It only gives."""

    def __init__(self, logs: ShardLog) -> None:
        self.logs = logs
        self.generation = 0

    async def release(self, uids: list[int]) -> list[Released]:
        """All or none. Raises StorageError: such as a full disk."""
        states = await self.logs.moves.release_partitions(uids)
        return [Released(uid, state) for uid, state in zip(uids, states, strict=True)]

    async def adopt(self, arrivals: list[Arrival]) -> None:
        raise StorageError("a shard that is gone takes no partitions")

    async def resume(self, uids: list[int]) -> None:
        await self.logs.moves.resume_partitions(uids)

    async def abandon(self, uids: list[int]) -> None:
        """It has none that it could give back."""


class Orphans:
    """All of them. open_logs: recover the logs of that shard in this process."""

    def __init__(
        self,
        disk: Disk,
        faults: SyncFaults,
        data_directory: str,
        shards: int,
        open_logs: Callable[[int], Awaitable[ShardLog]],
    ) -> None:
        self._disk, self._faults, self._data_directory = disk, faults, data_directory
        self._shards, self._open_logs = shards, open_logs
        self.open: dict[int, Orphan] = {}

    async def find(self) -> list[int]:
        """Numbers of shards that have a directory and no process."""
        await remove_the_rest(self._disk, self._faults, self._data_directory)
        return await orphan_shards(self._disk, self._data_directory, self._shards)

    async def recover(self, shard: int) -> None:
        self.open[shard] = Orphan(await self._open_logs(shard))
        log.info("orphan_recovered", extra={"fields": {"shard": shard}})

    async def remove(self, shard: int) -> None:
        """Nothing in it counts any more. Raises StorageError."""
        orphan = self.open.pop(shard, None)
        if orphan is not None:
            for uid in [one.uid for one in orphan.logs.partitions]:
                orphan.logs.forget_partition(uid)
            await orphan.logs.close()
        # First what is found by the directory's number only: a crash before its end must come back here.
        since = self._faults.number
        await self._disk.unlink(reserve_path(self._data_directory, shard))
        await sync_directory_noted(self._disk, self._faults, self._data_directory, since)
        await remove_shard_directory(self._disk, self._faults, self._data_directory, shard)
        log.info("orphan_removed", extra={"fields": {"shard": shard}})
