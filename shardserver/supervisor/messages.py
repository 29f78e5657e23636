"""What travels on the links between supervisor and shards, and on the control socket: JSON lines."""

from __future__ import annotations

from typing import Any

import msgspec


class Recovering(msgspec.Struct, frozen=True, tag=True):
    """The shard's loop runs: it reads its logs and does not serve yet."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The shard serves. core: None when unpinned. degraded: it reads only (its journal's device is broken)."""

    disk_engine: str
    core: int | None
    degraded: bool = False


class Answer(msgspec.Struct, frozen=True, tag=True):
    number: int
    content: dict[str, Any]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Answer what was read, sync, end."""


class Query(msgspec.Struct, frozen=True, tag=True):
    """number: comes back in the answer."""

    number: int
    command: str


class Request(msgspec.Struct, frozen=True):
    """A line of a client of the control socket."""

    command: str


FromShard = Recovering | Ready | Answer
ToShard = Stop | Query
