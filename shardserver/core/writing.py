"""What shard 0 has beside its partitions: the metadata log and its writer, moves, commands of the operator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from shardserver.core.custody import Custodian, RemoteCustodian
from shardserver.core.groups.access import GroupAccess
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.mover import Mover
from shardserver.core.operator_commands import Command, OperatorCommands
from shardserver.core.orphans import Orphans
from shardserver.core.owned_partitions import OwnedPartitions
from shardserver.core.placement import Placement, Rule
from shardserver.core.rehoming import rehome
from shardserver.core.shards import Shards
from shardserver.core.user_commands import expire_tokens
from shardserver.errors import DiskFullError
from shardserver.storage.disk import Disk
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.reserve import Reserve
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults
from shardserver.storage.unknown_directories import set_aside_unknown

TOKENS_LOOKED_AT_S = 60.0
# One batch of moves, and the time between two of them, when partitions are spread while the server serves.
SPREAD_BATCH, SPREAD_PAUSE_S = 8, 0.25


class WriterSide:
    """Owned by shard 0's loop."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        faults: SyncFaults,
        reserve: Reserve,
        placement: Placement,
        clock: Callable[[], int],
        partition_limit: int,
    ) -> None:
        self._disk, self._faults, self._placement = disk, faults, placement
        self._log = MetadataLog(disk, path, faults, reserve)
        self.writer = MetadataWriter(self._log, clock, placement=placement, partition_limit=partition_limit)
        self.mover = Mover(self.writer, self._custodian_of)
        self.commands: Mapping[str, Command] = {}
        self._orphans: Orphans
        self._shards: Shards
        self._owned: OwnedPartitions

    def reconfigure(self, strategy: str, rules: Sequence[Rule], partition_limit: int) -> None:
        """For what is placed from now on."""
        self._placement.strategy, self._placement.rules = strategy, rules
        self.writer.partition_limit = partition_limit

    async def set_aside_unknown(self, data_directory: str) -> None:
        metadata = self.writer.metadata
        known = {partition.uid for _, partition in metadata.live_partitions()} | set(metadata.dying)
        await set_aside_unknown(self._disk, self._faults, data_directory, known)

    async def begin(
        self,
        data_directory: str,
        shards: Shards,
        owned: OwnedPartitions,
        open_logs: Callable[[int], Awaitable[ShardLog]],
        wait_for_peers: Callable[[], Awaitable[None]],
        groups: GroupAccess | None = None,
    ) -> None:
        """This shard has recovered: bring partitions where they belong, then take commands. Raises StorageError."""
        self._shards, self._owned = shards, owned
        self._orphans = Orphans(self._disk, self._faults, data_directory, self._placement.shards, open_logs)
        await rehome(self.writer, self._placement, self.mover, self._orphans, wait_for_peers)
        self.commands = OperatorCommands(self.writer, self._placement, self.mover, shards, groups).commands

    def _custodian_of(self, shard: int) -> Custodian:
        if shard in self._orphans.open:
            return self._orphans.open[shard]
        if shard == self._shards.number:
            return self._owned
        return RemoteCustodian(self._shards.remote[shard].peer)

    async def spread(self) -> None:
        """Bring partitions of before to shards that are new, few at a time."""
        moves = self._placement.rebalance(self.writer.metadata)
        await self.mover.move(moves, batch=SPREAD_BATCH, pause_s=SPREAD_PAUSE_S)

    async def expire_tokens(self) -> None:
        """Now and then, as long as the server serves. Until then a token whose time is over is refused all the same."""
        while True:
            await asyncio.sleep(TOKENS_LOOKED_AT_S)
            try:
                await self.writer.change(expire_tokens)
            except DiskFullError:  # next time
                continue

    async def close(self) -> None:
        await self._log.close()
