"""Reading the configuration file again while the server runs.

All or nothing: whatever is wrong with the new file, nothing of it is applied. What is right is applied by every shard,
at once by those that run and by the others at their start. Keys that hold until the next start are left as they are and
told by name, each time, until there was one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from shardserver.config import Config, check_rules, check_values, known_keys, live_keys, value_of, with_values
from shardserver.errors import ConfigError
from shardserver.supervisor import resources
from shardserver.supervisor.messages import NewConfig
from shardserver.supervisor.shard_process import MAX_QUERY_BYTES


@dataclass(frozen=True, slots=True)
class Reloaded:
    """message: for the shards. applied: key -> new value. needs_restart: keys that have changed and wait."""

    message: NewConfig
    applied: dict[str, Any]
    needs_restart: list[str]

    def told(self) -> dict[str, Any]:
        return {"applied": msgspec.to_builtins(self.applied), "needs_restart": self.needs_restart}


class Reloader:
    """read: the configuration as it is written now; raises ConfigError.

    as_read: the same at the start. in_force: that with the defaults lowered to this machine.
    """

    def __init__(self, as_read: Config, in_force: Config, shards: int, read: Callable[[], Config]) -> None:
        self._as_read, self._in_force, self._shards, self._read = as_read, in_force, shards, read

    def reload(self) -> Reloaded:
        """Raises ConfigError: the file is refused, and everything is as it was."""
        found, live = self._read(), live_keys()
        # Compared as written: what this machine lowers a default to may have changed by itself.
        changed = [key for key in known_keys() if value_of(found, key) != value_of(self._as_read, key)]
        applied = [key for key in changed if key in live]
        in_force = with_values(self._in_force, found, applied)
        message = NewConfig(in_force, self._check(in_force))
        self._as_read, self._in_force = with_values(self._as_read, found, applied), in_force
        values = {key: value_of(found, key) for key in applied}
        return Reloaded(message, values, [key for key in changed if key not in live])

    def _check(self, config: Config) -> int:
        """Raises ConfigError; gives the number of partitions that descriptors and memory allow beside it."""
        check_values(config)
        check_rules(config.placement.rules, self._shards)
        descriptors, (memory, _) = resources.raise_descriptor_limit(), resources.memory_limit()
        resources.check_descriptors(config, descriptors, self._shards)
        partition_limit = resources.partition_limit(config, descriptors, memory, self._shards)
        if len(msgspec.json.encode(NewConfig(config, partition_limit))) >= MAX_QUERY_BYTES:
            raise ConfigError("placement.rules: too many for a reload; they need a restart")
        return partition_limit
