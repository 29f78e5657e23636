"""The server with users, before it has commands for them: permission to send alone, given and taken by metadata events.

Started as `python -m tests.bench.server_with_users`; a shard's process imports this module again (multiprocessing,
spawn). A user whose status is 1 may send. With STALE_ROUTES=1 in the environment, routes of sends are kept whatever
changes: a fault to be found.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from shardserver.cli.main import main
from shardserver.core import changes, dispatch, permissions
from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.authentication import hash_password
from shardserver.core.metadata_commands import PLANNERS, Plan, PlanContext
from shardserver.net import routes
from shardserver.protocol.table import Command, Row
from shardserver.protocol.users import STATUS_ACTIVE, STATUS_INACTIVE
from shardserver.server import Shard

STALE_ROUTES = "STALE_ROUTES"


def create_user(metadata: md.Metadata, request: Any, context: PlanContext) -> Plan:
    number = max(metadata.users) + 1
    user = md.User(number, request.username, context.now, hash_password(request.password), STATUS_ACTIVE)
    return Plan([ev.UserCreated(user)])


def withdraw(metadata: md.Metadata, request: Any, context: PlanContext) -> Plan:
    [user] = (one for one in metadata.users.values() if one.name == request.user)
    return Plan([ev.UserCreated(msgspec.structs.replace(user, status=STATUS_INACTIVE))])


def check_right(metadata: md.Metadata, user_id: int, row: Row, request: Any) -> None:
    user = metadata.users.get(user_id)
    if row.command is Command.SEND_MESSAGES and user is not None and user.status == STATUS_ACTIVE:
        return
    permissions.check_right(metadata, user_id, row, request)


def keep_routes(shard: Shard, events: list[ev.Event] | None) -> None:
    shard._owned.reconcile(events)


PLANNERS.update({Command.CREATE_USER: create_user, Command.UPDATE_PERMISSIONS: withdraw, Command.DELETE_USER: withdraw})
for module in (changes, dispatch, routes):
    module.check_right = check_right  # type: ignore[attr-defined]
if os.environ.get(STALE_ROUTES) == "1":
    Shard._on_applied = keep_routes  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
