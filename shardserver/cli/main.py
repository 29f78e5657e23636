"""The `shardserver` command."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version

from shardserver.cli import stopped_commands, top
from shardserver.cli.control import NoServerError, ask
from shardserver.cli.groups import add_host, ask_host, groups_text
from shardserver.cli.placement import placement_text
from shardserver.cli.reload import reload_text
from shardserver.cli.root_password import first_password_hash, given_password
from shardserver.config import Config, Sources, check_rules, load
from shardserver.config_text import describe
from shardserver.errors import ShardServerError
from shardserver.supervisor import logs, resources
from shardserver.supervisor.cores import CoreChoice, choose_accepting, choose_cores, this_machine
from shardserver.supervisor.server_state import EXIT_CODES, sentence_of, shown_state

log = logging.getLogger(__name__)

FLAGS = {
    "cores": "server.cores",
    "pin": "server.pin",
    "host": "server.host",
    "port": "server.port",
    "data": "server.data",
    "durability": "server.durability",
    "disk_engine": "server.disk_engine",
    "log_level": "log.level",
    "log_format": "log.format",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="shardserver", description="A persistent message-streaming server.")
    made.add_argument("--version", action="version", version=version("shardserver"))
    made.add_argument("--config", metavar="FILE", help="TOML file")
    made.add_argument("--require-data", action="store_true", help="refuse an empty data directory")
    for name, key in FLAGS.items():
        made.add_argument("--" + name.replace("_", "-"), help=key)
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    check = commands.add_parser("check-config", help="read a configuration file and say what is wrong with it")
    check.add_argument("file")
    commands.add_parser("print-config", help="the effective configuration and where each value came from")
    on_data = {
        "reset-root-password": "make a new root password; the server must be stopped",
        "reload": "have a running server read its configuration file again; says what applies and what waits",
        "status": "state of a running server; an exit code for each, 0 when it is ready",
        "stats": "figures of a running server",
        "groups": "consumer groups of a running server: who has which partition, and how far behind it is",
        "placement": "which shard each partition lives on, and why; of a running or a stopped server",
    }
    for name, text in on_data.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--data", dest="command_data", metavar="DIR")
        if name in ("reload", "status", "stats", "groups", "placement"):
            command.add_argument("--json", action="store_true", help="one line of JSON")
        if name == "groups":
            add_host(command)
    _add_moves(commands)
    top.add_parser(commands)
    stopped_commands.add_parsers(commands)
    return made


def _add_moves(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    move = commands.add_parser("move-partition", help="move a partition of a running server to another shard")
    for name in ("stream", "topic"):
        move.add_argument(name, help="name or number")
    move.add_argument("partition", type=int)
    move.add_argument("--to-shard", type=int, required=True, metavar="N")
    rebalance = commands.add_parser("rebalance", help="spread the partitions of a running server over its shards")
    rebalance.add_argument("--by", choices=("load", "count"), required=True)
    rebalance.add_argument("--dry-run", action="store_true", help="say what would be moved")
    for command in (move, rebalance):
        command.add_argument("--data", dest="command_data", metavar="DIR")
        command.add_argument("--json", action="store_true", help="one line of JSON")


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 it failed (a sentence on standard error), 2 wrong usage."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "check-config":
            load(arguments.file, {}, {})
            print(f"{arguments.file}: fine")
            return 0
        config, sources = _effective(arguments)
        return COMMANDS[arguments.command](config, sources, arguments)
    except ShardServerError as error:
        print(f"shardserver: {error}", file=sys.stderr)
        return 1


def _effective(arguments: argparse.Namespace) -> tuple[Config, Sources]:
    flags = {key: getattr(arguments, name) for name, key in FLAGS.items() if getattr(arguments, name) is not None}
    if arguments.require_data:
        flags["server.require_data"] = "true"
    if getattr(arguments, "command_data", None) is not None:
        flags["server.data"] = arguments.command_data
    config, sources, warnings = load(arguments.config, os.environ, flags)
    for warning in warnings:
        print(f"shardserver: warning: {warning}", file=sys.stderr)
    return config, sources


def _fitted(config: Config, sources: Sources) -> tuple[Config, Sources, CoreChoice]:
    """The defaults lowered to what this machine has for so many shards."""
    choice = choose_cores(config.server.cores, this_machine())
    lowered, where = resources.lower_defaults(config, sources, resources.memory_limit()[0], len(choice.cores))
    return lowered, where, choice


def serve(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    """Run the server until a signal."""
    # Imported here: the other commands need none of it.
    from shardserver.supervisor.data_directory import DataDirectory
    from shardserver.supervisor.reload import Reloader
    from shardserver.supervisor.stop_signals import StopSignals
    from shardserver.supervisor.supervisor import Supervisor

    signals = StopSignals()
    logs.configure(config.log.level, config.log.format)
    as_read = config
    config, sources, choice = _fitted(config, sources)
    shards = len(choice.cores)
    choose_accepting(config.net.accept_shards, shards)
    check_rules(config.placement.rules, shards)
    partition_limit = _check_resources(config, shards)
    if len(set(choice.cores)) < shards:
        fields = {"shards": shards, "cores": len(set(choice.cores))}
        log.warning("shards_share_cores", extra={"fields": fields})
    data = DataDirectory(config.server.data)
    data.open(require_data=config.server.require_data)
    reloader = None
    if arguments.config is not None:
        reloader = Reloader(as_read, config, shards, lambda: _effective(arguments)[0])
    try:
        root_hash = first_password_hash(data.path)
        supervisor = Supervisor(config, data, choice, root_hash, signals, partition_limit, reloader=reloader)
    except ShardServerError:
        data.close()
        raise
    return supervisor.run()


def _check_resources(config: Config, shards: int) -> int:
    """Refuse what does not fit, log the sums; gives the number of partitions that do."""
    limit, name = resources.memory_limit()
    descriptors = resources.raise_descriptor_limit()
    partitions = resources.partition_limit(config, descriptors, limit, shards)
    fields = {
        "shards": shards,
        "memory_needed_bytes": resources.check_memory(config, shards, limit, name),
        "memory_limit_bytes": limit,
        "memory_limited_by": name,
        "arena_bytes": resources.arena_bytes(config),
        "descriptors_needed": resources.check_descriptors(config, descriptors, shards),
        "descriptors_limit": descriptors,
        "partition_limit": partitions,
    }
    log.info("resources", extra={"fields": fields})
    return partitions


def _print_config(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    print(describe(*_fitted(config, sources)[:2]))
    return 0


def _reset_root_password(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    from shardserver.admin.root_password import reset_root_password

    return asyncio.run(reset_root_password(config.server.data, given_password()))


def _status(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    answer = ask(config.server.data, "status")
    print(json.dumps(answer) if arguments.json else sentence_of(answer))
    return EXIT_CODES[shown_state(answer["state"], degraded=answer["degraded"])]


def _stats(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    answer = ask(config.server.data, "stats")
    print(json.dumps(answer, indent=None if arguments.json else 2))
    return 1 if any("error" in shard for shard in answer["shards"]) else 0


def _groups(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    answer = ask(config.server.data, "groups") if arguments.host is None else ask_host(arguments)
    print(json.dumps(answer) if arguments.json else groups_text(answer))
    return 0


def _reload(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    answer = ask(config.server.data, "reload")
    print(json.dumps(answer) if arguments.json else reload_text(answer))
    return 0


def _move_partition(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    where = {"stream": arguments.stream, "topic": arguments.topic, "partition": arguments.partition}
    answer = ask(config.server.data, "move-partition", **where, to_shard=arguments.to_shard)
    print(json.dumps(answer, indent=None if arguments.json else 2))
    return 0


def _rebalance(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    answer = ask(config.server.data, "rebalance", by=arguments.by, dry_run=arguments.dry_run)
    print(json.dumps(answer, indent=None if arguments.json else 2))
    return 0


def _placement(config: Config, sources: Sources, arguments: argparse.Namespace) -> int:
    try:
        answer = ask(config.server.data, "placement")
    except NoServerError:
        from shardserver.admin.placement import read_placement

        shards = len(choose_cores(config.server.cores, this_machine()).cores)
        answer = asyncio.run(read_placement(config, shards))
    print(json.dumps(answer) if arguments.json else placement_text(answer))
    return 0


COMMANDS: dict[str | None, Callable[[Config, Sources, argparse.Namespace], int]] = {
    None: serve,
    "print-config": _print_config,
    "reset-root-password": _reset_root_password,
    "groups": _groups,
    "reload": _reload,
    "status": _status,
    "stats": _stats,
    "move-partition": _move_partition,
    "rebalance": _rebalance,
    "placement": _placement,
    "top": lambda config, sources, arguments: top.run(config.server.data, arguments),
    **stopped_commands.COMMANDS,
}
