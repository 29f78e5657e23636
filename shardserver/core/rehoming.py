"""What a start with another number of shards or other rules asks for, before anybody is served (storage rule 18)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.mover import Mover
from shardserver.core.orphans import Orphans
from shardserver.core.placement import Placement
from shardserver.errors import StorageError

log = logging.getLogger(__name__)

# A shard that dies meanwhile comes back, and is no reason to refuse the start.
TRIES, PAUSE_S = 3, 1.0


async def rehome(
    writer: MetadataWriter,
    placement: Placement,
    mover: Mover,
    orphans: Orphans,
    wait_for_peers: Callable[[], Awaitable[None]],
) -> None:
    """Partitions of shards that are gone, and of those that no rule allows any more, go where they belong.

    Two phases: the old journals are recovered under the old placement, then what they hold is moved, and removed last.
    A crash in between finds either the old owner or the new one in the metadata.

    Raises:
        StorageError: one of them could not be moved, such as on a full disk; nothing is lost, the start is refused.
    """
    moves = placement.misplaced(writer.metadata)
    gone = await orphans.find()
    if not moves and not gone:
        return
    await wait_for_peers()
    for shard in gone:
        await orphans.recover(shard)
    moved = await _move(writer, placement, mover, wait_for_peers)
    for shard in gone:
        await orphans.remove(shard)
    log.info("partitions_rehomed", extra={"fields": {"moved": moved, "shards_gone": gone}})


async def _move(
    writer: MetadataWriter, placement: Placement, mover: Mover, wait_for_peers: Callable[[], Awaitable[None]]
) -> int:
    moved = 0
    for again in range(TRIES):
        if again:
            await asyncio.sleep(PAUSE_S)
            await wait_for_peers()
        outcome = await mover.move(placement.misplaced(writer.metadata))
        moved += outcome.moved
        if not outcome.errors:
            return moved
    sentence = "; ".join(sorted(set(outcome.errors.values())))
    raise StorageError(f"{len(outcome.errors)} partitions could not be moved to other shards: {sentence}")
