"""The shard's process: what it is given, and its side of the pipe to the supervisor."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
import uvloop

from shardserver.config import Config
from shardserver.supervisor import logs

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True)
class ShardArguments:
    """Travels to the spawned process. root_password_hash: for a metadata log that has no user yet."""

    shard: int
    config: Config
    data_directory: str
    listener: socket.socket
    link: Connection
    root_password_hash: str | None
    core: int | None
    read_only: bool = False


class ShardLink:
    """Messages to and from the supervisor; its end is ours too."""

    def __init__(self, connection: Connection, core: int | None) -> None:
        self._connection, self._core = connection, core
        self.on_stop: Callable[[], None] = lambda: None
        self.on_query: Callable[[str], dict[str, Any]] = lambda command: {"state": "recovering"}

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._receive)

    def _receive(self) -> None:
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # the supervisor is gone: nobody holds our port or our lock any more
        if message["kind"] == "stop":
            self.on_stop()
        else:
            self._connection.send({"kind": "answer", "content": self.on_query(message["command"])})

    def send_ready(self, disk_engine: str, *, degraded: bool) -> None:
        self._connection.send({"kind": "ready", "disk_engine": disk_engine, "core": self._core, "degraded": degraded})


def pin(core: int | None) -> int | None:
    """Pin this process; a refusal is a warning and leaves it unpinned (None)."""
    if core is None:
        return None
    try:
        psutil.Process().cpu_affinity([core])
    except (OSError, ValueError) as error:
        log.warning("pinning_refused", extra={"fields": {"core": core, "error": str(error)}})
        return None
    return core


def run_shard_process(arguments: ShardArguments) -> None:
    """Entry of the spawned process."""
    from shardserver.server import run_shard  # the composition imports everything: only the shard pays for it

    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # Signals of a terminal reach the whole group; the supervisor alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.configure(arguments.config.log.level, arguments.config.log.format)
    link = ShardLink(arguments.link, pin(arguments.core))
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(run_shard(arguments, link))
    raise SystemExit(code)
