"""The server with a fault to be found: routes of sends are kept whatever changes.

Started as `python -m tests.bench.server_with_stale_routes`; a shard's process imports this module again
(multiprocessing, spawn).
"""

from __future__ import annotations

import sys

from shardserver.cli.main import main
from shardserver.core import metadata_events as ev
from shardserver.server import Shard


def keep_routes(shard: Shard, events: list[ev.Event] | None) -> None:
    shard._owned.reconcile(events)
    shard._sessions.end_stale(shard._role.metadata)


Shard._on_applied = keep_routes  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
