"""What a shard's exit code tells the supervisor to do (docs/durability.md, "A broken device")."""

from __future__ import annotations

from enum import IntEnum

JOURNAL_GRACE_S = 30.0


class ShardExit(IntEnum):
    """Any other code is a crash: start it again."""

    STOPPED = 0
    REFUSED = 1  # damage that only an operator can judge: at the first start the server ends
    JOURNAL_FAILED = 3  # start it again; at the second time within 30 s read-only
    UNWRITABLE = 4  # its recovery could not write: start it read-only
    HEALED = 5  # it was read-only, and the device takes writes again: start it as usual
    LINK_BROKEN = 6  # what came from the supervisor or a peer made no sense: start it again


class ReadOnlyRule:
    """Whether the next start of a shard is read-only, from how it ended before."""

    def __init__(self) -> None:
        self._journal_failed_at: float | None = None

    def after(self, exit_code: int | None, now: float) -> bool:
        if exit_code == ShardExit.UNWRITABLE:
            return True
        if exit_code != ShardExit.JOURNAL_FAILED:
            return False
        former, self._journal_failed_at = self._journal_failed_at, now
        return former is not None and now - former < JOURNAL_GRACE_S
