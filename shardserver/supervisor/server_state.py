"""The server's state: what `status` answers, `DATA/run/state.json` says and `shardserver status` ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardserver.supervisor.shard_handle import ShardHandle

# Of `shardserver status`. 1: no server runs, or it cannot be asked; 2: wrong usage.
EXIT_CODES = {"ready": 0, "degraded": 3, "starting": 4, "recovering": 5, "stopping": 6}
_SHOWN = {"ready": 2, "recovered": 1, "recovering": 1}


def state_of(shards: Sequence[ShardHandle], *, is_stopping: bool) -> str:
    """stopping, or that of the shard that is least far; recovering until all serve."""
    if is_stopping:
        return "stopping"
    return ("starting", "recovering", "ready")[min(_SHOWN.get(shard.state, 0) for shard in shards)]


def is_degraded(shards: Sequence[ShardHandle]) -> bool:
    return any(shard.recovered is not None and shard.recovered.degraded for shard in shards)


def shown_state(state: str, *, degraded: bool) -> str:
    return "degraded" if degraded and state == "ready" else state


def recovery_of(shards: Sequence[ShardHandle]) -> dict[str, Any]:
    """How far all of them are together. seconds_left: of the slowest, an estimate; null while nothing tells.

    waits_for: paths of files that others have locked, such as the kernel for the writes of a dead process.
    """
    told = [shard.progress for shard in shards if shard.progress is not None]
    left = [one.seconds_left for one in told if one.seconds_left is not None]
    return {
        "partitions_done": sum(one.partitions_done for one in told),
        "partitions": sum(one.partitions for one in told),
        "read_bytes": sum(one.read_bytes for one in told),
        "seconds_left": max(left, default=None),
        "waits_for": sorted(path for one in told for path in one.waits_for),
    }


def sentence_of(answer: dict[str, Any]) -> str:
    """The answer to `status` in one line."""
    state = shown_state(answer["state"], degraded=answer["degraded"])
    recovery = answer.get("recovery")
    if state != "recovering" or not recovery:
        return state
    left, locked = recovery["seconds_left"], recovery["waits_for"]
    waits = f", waits for the lock of {', '.join(locked)}" if locked else ""
    estimate = "" if left is None else f", about {left:.0f} s left"
    done, all_, read = recovery["partitions_done"], recovery["partitions"], recovery["read_bytes"]
    return f"recovering {done} of {all_} partitions, {read} bytes read{estimate}{waits}"
