"""What a handler is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from shardserver.core.changes import Changes
from shardserver.core.groups.access import GroupAccess
from shardserver.core.logins import Logins
from shardserver.core.metadata import Metadata
from shardserver.core.sessions import Sessions
from shardserver.core.shards import Shards
from shardserver.protocol.options import PLAIN_DEFAULTS, TopicDefaults


class Replica(Protocol):
    """Whoever holds the metadata of this process: the writer on shard 0, a follower elsewhere."""

    @property
    def metadata(self) -> Metadata: ...


@dataclass(slots=True)
class ShardContext:
    """One shard: its replica, its sessions, its view of all shards. advertised: host and port that cluster metadata
    names; an empty host: the socket's address.

    memory_limit_bytes: of all processes together. config_text: the configuration in force, as TOML.
    """

    version: str
    data_directory: str
    replica: Replica
    changes: Changes
    shards: Shards
    sessions: Sessions
    logins: Logins
    groups: GroupAccess
    clock: Callable[[], int]
    max_reply_bytes: int
    advertised: tuple[str, int]
    memory_limit_bytes: int
    config_text: Callable[[], str]
    topic_defaults: TopicDefaults = PLAIN_DEFAULTS
    cursors: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def metadata(self) -> Metadata:
        return self.replica.metadata
