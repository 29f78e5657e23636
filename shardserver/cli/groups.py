"""`shardserver groups`: asked of a server anywhere with --host, and its answer as text."""

from __future__ import annotations

import argparse
import os
from typing import Any

from shardserver.cli.table import table_lines
from shardserver.client.connection import Connection
from shardserver.client.group_lag import read_group_lag
from shardserver.errors import ShardServerError

PASSWORD_VARIABLE, ROOT_VARIABLE = "SHARDSERVER_PASSWORD", "SHARDSERVER_ROOT_PASSWORD"
ROOT_NAME = "iggy"

COLUMNS = ("stream", "topic", "group", "partition", "owner", "committed", "end", "lag")
NUMBERS = frozenset(COLUMNS[3:])


def groups_text(answer: dict[str, Any]) -> str:
    """One line a group and partition; `-`: nobody, or nothing."""
    rows = sorted(answer["groups"], key=lambda row: (row["stream"], row["topic"], row["group"], row["partition"]))
    if not rows:
        return "no consumer groups"
    shown = [{name: "-" if row[name] is None else row[name] for name in COLUMNS} for row in rows]
    return "\n".join(table_lines(shown, COLUMNS, NUMBERS))


def add_host(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", metavar="HOST:PORT", help="ask there as a client does, instead of on this machine")
    password = f"--host: who asks ({ROOT_NAME}); password: in {PASSWORD_VARIABLE}, of root also in {ROOT_VARIABLE}"
    command.add_argument("--user", metavar="NAME", default=ROOT_NAME, help=password)


def ask_host(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises ShardServerError: no such server, or no such user there."""
    of_root = os.environ.get(ROOT_VARIABLE) if arguments.user == ROOT_NAME else None
    password = os.environ.get(PASSWORD_VARIABLE, of_root)
    if password is None:
        raise ShardServerError(f"--host needs the password of {arguments.user} in {PASSWORD_VARIABLE}")
    host, _, port = arguments.host.rpartition(":")
    if not host or not port.isdigit():
        raise ShardServerError(f"--host {arguments.host!r}: host:port")
    try:
        with Connection(host.strip("[]"), int(port)) as connection:
            connection.login(arguments.user, password)
            return {"groups": read_group_lag(connection)}
    except OSError as error:
        raise ShardServerError(f"{arguments.host}: {error}") from error
