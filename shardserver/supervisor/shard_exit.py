"""What a shard's exit code tells the supervisor to do (docs/durability.md, "A broken device")."""

from __future__ import annotations

from enum import IntEnum


class ShardExit(IntEnum):
    """Any other code is a crash: start it again."""

    STOPPED = 0
    REFUSED = 1  # damage that only an operator can judge: at the first start the server ends
    JOURNAL_FAILED = 3  # start it again; at the second time within 30 s read-only
    UNWRITABLE = 4  # its recovery could not write: start it read-only
    HEALED = 5  # it was read-only, and the device takes writes again: start it as usual
