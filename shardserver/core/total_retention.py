"""Retention by the size of the whole server: the oldest sealed segment of all shards goes first.

Each shard shows on its board what its segments hold and how old the oldest is, and deletes its own only.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardserver.memory.board import Board
from shardserver.storage.shard_log import ShardLog


async def enforce_total(limit_bytes: int, logs: ShardLog, own: Board, boards: Sequence[Board]) -> int:
    """Delete while all boards together are above the limit (0: none) and ours has the oldest; gives how many went.

    Raises StorageError.
    """
    removed = 0
    while True:
        own.segments_bytes, own.oldest_timestamp = logs.segments_bytes, logs.retention.oldest_sealed_timestamp
        total = sum(one.segments_bytes for one in boards)
        oldest = min((one.oldest_timestamp for one in boards if one.oldest_timestamp), default=0)
        if not limit_bytes or total <= limit_bytes or not oldest or own.oldest_timestamp != oldest:
            return removed
        expired = await logs.retention.expire_oldest()
        if not expired:  # it moves away at this moment
            return removed
        removed += expired
