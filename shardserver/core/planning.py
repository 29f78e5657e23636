"""A change of metadata before it is made: what is asked, what it would change, what the client would be told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from shardserver.core.metadata import Metadata
from shardserver.core.metadata_events import Event
from shardserver.core.placement import Placement
from shardserver.errors import Code, RejectedError
from shardserver.protocol.options import PLAIN_DEFAULTS, Options, TopicDefaults


@dataclass(frozen=True, slots=True)
class Plan:
    events: list[Event] = field(default_factory=list)
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What a plan needs beside replica and request.

    now: microseconds since the epoch. partition_limit: the most partitions that descriptors and memory
    allow at a time, counted over the server; None: no limit. topic_defaults: of options that a request leaves
    open. user_id, client: of who asks.
    """

    now: int
    placement: Placement = field(default_factory=Placement)
    partition_limit: int | None = None
    topic_defaults: TopicDefaults = PLAIN_DEFAULTS
    user_id: int = 0
    client: bytes = b""


# Takes (replica, request, context) and raises RejectedError. The request is a value of the row's request codec
# (protocol/table.py), or what is made of it before the plan (passwords.py).
Planner = Callable[[Metadata, Any, PlanContext], Plan]


def lowest_free(used: Collection[int]) -> int:
    number = 0
    while number in used:
        number += 1
    return number


def refuse_options(options: Options) -> None:
    """Of objects without any. Raises RejectedError(4041)."""
    if options:
        raise RejectedError(Code.UNSUPPORTED_OPTION_KEY)
