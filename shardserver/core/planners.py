"""Which plan belongs to which command."""

from __future__ import annotations

from shardserver.core.group_commands import GROUP_PLANNERS
from shardserver.core.metadata_commands import STREAM_PLANNERS
from shardserver.core.planning import Planner
from shardserver.core.user_commands import USER_PLANNERS
from shardserver.protocol.table import Command

PLANNERS: dict[Command, Planner] = STREAM_PLANNERS | USER_PLANNERS | GROUP_PLANNERS
