"""The `shardserver` command."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import sys
from importlib.metadata import version

from shardserver.config import Config, describe, load
from shardserver.errors import ConfigError, ShardServerError
from shardserver.supervisor import logs

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
    reset = commands.add_parser("reset-root-password", help="make a new root password; the server must be stopped")
    reset.add_argument("--data", dest="command_data")
    stats = commands.add_parser("stats", help="figures of a running server")
    stats.add_argument("--json", action="store_true")
    stats.add_argument("--data", dest="command_data")
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 it failed (a sentence on standard error), 2 wrong usage."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except ShardServerError as error:
        print(f"shardserver: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    flags = {key: getattr(arguments, name) for name, key in FLAGS.items() if getattr(arguments, name) is not None}
    if arguments.require_data:
        flags["server.require_data"] = "true"
    if getattr(arguments, "command_data", None) is not None:
        flags["server.data"] = arguments.command_data
    path = arguments.file if arguments.command == "check-config" else arguments.config
    config, sources, warnings = load(path, os.environ, flags)
    for warning in warnings:
        print(f"shardserver: warning: {warning}", file=sys.stderr)
    if arguments.command == "check-config":
        print(f"{path}: fine")
    elif arguments.command == "print-config":
        print(describe(config, sources))
    elif arguments.command == "stats":
        return _stats(config, as_json=arguments.json)
    elif arguments.command == "reset-root-password":
        from shardserver.admin.root_password import reset_root_password

        return asyncio.run(reset_root_password(config.server.data, _given_password()))
    else:
        return serve(config)
    return 0


def cores_of(text: str) -> list[int]:
    """ "2" is two shards on the first cores that the process may use; "0-3,8" names them. Raises ConfigError."""
    usable = sorted(os.sched_getaffinity(0))
    try:
        if text.isdigit():
            if not 1 <= int(text) <= len(usable):
                raise ConfigError(f"--cores {text}: this process may use {len(usable)} cores")
            return usable[: int(text)]
        found: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
        return found
    except ValueError as error:
        raise ConfigError(f"--cores {text!r}: a number, or a list such as 0-3,8") from error


def serve(config: Config) -> int:
    """Run the server until a signal."""
    # Imported here: the other commands need none of it.
    from shardserver.supervisor.data_directory import DataDirectory
    from shardserver.supervisor.supervisor import Supervisor

    logs.configure(config.log.level, config.log.format)
    cores = cores_of(config.server.cores)
    if len(cores) > 1:
        raise ConfigError(f"--cores {config.server.cores}: this release serves one shard; more come with the next one")
    data = DataDirectory(config.server.data)
    data.open(require_data=config.server.require_data)
    try:
        supervisor = Supervisor(config, data, cores, _first_root_password(data.path))
    except ShardServerError:
        data.close()
        raise
    return supervisor.run()


def _given_password() -> str | None:
    if "SHARDSERVER_ROOT_PASSWORD" in os.environ:
        return os.environ["SHARDSERVER_ROOT_PASSWORD"]
    path = os.environ.get("SHARDSERVER_ROOT_PASSWORD_FILE")
    if path is None:
        return None
    try:
        with open(path) as file:
            return file.read().rstrip("\n")
    except OSError as error:
        raise ConfigError(f"SHARDSERVER_ROOT_PASSWORD_FILE: {error}") from error


def _first_root_password(data_path: str) -> str | None:
    """The root password's hash at the first start; None later. A random one is shown once, and never logged."""
    from shardserver.core.authentication import hash_password

    given = _given_password()
    if os.path.exists(os.path.join(data_path, "metadata")):
        if given is not None:
            print("shardserver: the root password was set at the first start; to change it, stop the server and run "
                  "`shardserver reset-root-password --data DIR`", file=sys.stderr)  # fmt: skip
        return None
    if given is None:
        given = secrets.token_urlsafe(18)
        print(f"shardserver: user iggy, password {given} (shown once)", file=sys.stderr)
    if not 3 <= len(given.encode()) <= 100:
        raise ConfigError("the root password must have 3 to 100 bytes")
    return hash_password(given)


def _stats(config: Config, *, as_json: bool) -> int:
    path = os.path.join(config.server.data, "run", "control.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError as error:
            raise ConfigError(f"no server runs on {config.server.data}: {error.strerror}") from error
        client.sendall(b'{"command": "stats"}\n')
        answer = json.loads(client.makefile("rb").readline())
    print(json.dumps(answer, indent=None if as_json else 2))
    return 1 if "error" in answer else 0
