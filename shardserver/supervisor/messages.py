"""What travels on the links between supervisor and shards, and on the control socket: JSON lines."""

from __future__ import annotations

from typing import Any

import msgspec

from shardserver.config import Config

# From a shard


class Recovering(msgspec.Struct, frozen=True, tag=True):
    """The shard's loop runs: it reads its logs and does not serve yet. May come again, with how far it is.

    seconds_left: an estimate; None: there is none yet. waits_for: files that others have locked.
    """

    partitions_done: int = 0
    partitions: int = 0
    read_bytes: int = 0
    seconds_left: float | None = None
    waits_for: tuple[str, ...] = ()


class Recovered(msgspec.Struct, frozen=True, tag=True):
    """It can serve. core: None when unpinned. degraded: it reads only (its journal's device is broken)."""

    disk_engine: str
    core: int | None
    degraded: bool = False


class Ready(msgspec.Struct, frozen=True, tag=True):
    """It accepts connections, or serves its peers when it has no listener."""


class Answer(msgspec.Struct, frozen=True, tag=True):
    number: int
    content: dict[str, Any]


# To a shard


class Own(msgspec.Struct, frozen=True, tag=True):
    """Carries OwnDescriptors. The first line of all."""

    descriptors: int = 3


class Peer(msgspec.Struct, frozen=True, tag=True):
    """Carries PeerDescriptors of another living process. is_serving: it has recovered, so its ring is answered."""

    number: int
    is_serving: bool
    descriptors: int = 5


class PeerGone(msgspec.Struct, frozen=True, tag=True):
    """That process has ended. What it had published on its ring is still there to be taken."""

    number: int


class Serve(msgspec.Struct, frozen=True, tag=True):
    """All shards have recovered: accept connections now."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Answer what was read, sync, end."""


class NewConfig(msgspec.Struct, frozen=True, tag=True):
    """A reload: what is in force from now on. partition_limit: as in ShardArguments."""

    config: Config
    partition_limit: int


class Query(msgspec.Struct, frozen=True, tag=True):
    """number: comes back in the answer."""

    number: int
    command: str
    arguments: dict[str, Any] = {}


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a client of the control socket."""

    command: str
    arguments: dict[str, Any] = {}


FromShard = Recovering | Recovered | Ready | Answer
ToShard = Own | Peer | PeerGone | Serve | Stop | NewConfig | Query

# Stream, topic and group names of 255 bytes each, with each byte escaped as \u00xx.
MAX_REQUEST_BYTES = 16 << 10
# Asked of all shards.
OF_ALL_SHARDS = frozenset({"stats", "top"})
# Answered by shard 0, the writer of the metadata.
OF_SHARD_0 = frozenset({"placement", "move-partition", "rebalance", "groups"})
# Seconds that a shard has for its answer. A move drains, syncs and opens a partition; a rebalance makes many of them.
_ANSWER_DEADLINES_S = {"placement": 10.0, "groups": 10.0, "move-partition": 60.0, "rebalance": 600.0}


def answer_deadline_s(command: str) -> float:
    return _ANSWER_DEADLINES_S.get(command, 5.0)
