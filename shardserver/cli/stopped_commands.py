"""Commands on the data of a stopped server: verify, dump, repair, rebuild-metadata.

Exit codes: 0 nothing is damaged (any more), 1 something is, 2 wrong usage, or the directory cannot be looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine

from shardserver.config import Config, Sources
from shardserver.errors import ConfigError

UNUSABLE = 2
Command = Callable[[Config, Sources, argparse.Namespace], int]
Subparsers = argparse._SubParsersAction


def add_parsers(commands: Subparsers[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser("verify", help="what is damaged in the data of a stopped server; exit code 1 if any")
    verify.add_argument("--json", action="store_true", help="lines of JSON")
    repair = commands.add_parser("repair", help="take out what is damaged; what is removed is kept in set-aside")
    repair.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    repair.add_argument("--json", action="store_true", help="lines of JSON")
    dump = commands.add_parser("dump", help="print what stands in the files of a stopped server, lines of JSON")
    dump.add_argument("--part", choices=("all", "metadata", "journal", "offsets", "segments"), default="all")
    dump.add_argument("--partition", type=int, metavar="UID", help="of this partition only; `placement` tells its uid")
    text = "streams, topics and partitions from the directories of the partitions; the former log is kept"
    rebuild = commands.add_parser("rebuild-metadata", help=text)
    rebuild.add_argument("--dry-run", action="store_true", help="say what there would be, change nothing")
    rebuild.add_argument("--json", action="store_true", help="lines of JSON")
    for command in (verify, repair, dump, rebuild):
        command.add_argument("--data", dest="command_data", metavar="DIR")


def _run(work: Coroutine[None, None, int]) -> int:
    logging.disable(logging.ERROR)  # what is found is printed by the command itself
    try:
        return asyncio.run(work)
    except ConfigError as error:
        print(f"shardserver: {error}", file=sys.stderr)
        return UNUSABLE
    finally:
        logging.disable(logging.NOTSET)


def _verify(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    from shardserver.admin.verify import verify

    return _run(verify(config.server.data, as_json=arguments.json))


def _repair(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    from shardserver.admin.repair import repair

    return _run(repair(config.server.data, dry_run=arguments.dry_run, as_json=arguments.json))


def _dump(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    from shardserver.admin.dump import dump

    return _run(dump(config.server.data, arguments.part, arguments.partition))


def _rebuild_metadata(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    from shardserver.admin.rebuild import rebuild_metadata

    return _run(rebuild_metadata(config.server.data, dry_run=arguments.dry_run, as_json=arguments.json))


COMMANDS: dict[str | None, Command] = {
    "verify": _verify,
    "repair": _repair,
    "dump": _dump,
    "rebuild-metadata": _rebuild_metadata,
}
