"""The shard's process: what it is given, and its side of the pipe to the supervisor."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil
import uvloop

from shardserver.config import Config
from shardserver.supervisor import logs, stop_signals
from shardserver.supervisor.lines import LineSocket
from shardserver.supervisor.messages import Answer, FromShard, Ready, Recovering, Stop, ToShard

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # prctl(2)


MAX_QUERY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ShardArguments:
    """Travels to the spawned process. root_password_hash: for a metadata log that has no user yet."""

    shard: int
    config: Config
    data_directory: str
    listener: socket.socket
    link: socket.socket
    root_password_hash: str | None
    core: int | None
    read_only: bool = False


class ShardLink:
    """Messages to and from the supervisor; its end is ours too."""

    def __init__(self, connected: socket.socket, shard: int, core: int | None) -> None:
        self._lines = LineSocket(connected, MAX_QUERY_BYTES)
        self._shard, self._core = shard, core
        self.on_stop: Callable[[], None] = lambda: None
        self.on_query: Callable[[str], dict[str, Any]] = lambda command: {"shard": shard, "state": "recovering"}

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._lines.fileno(), self._receive)
        self._send(Recovering())

    def _receive(self) -> None:
        if not self._lines.receive():
            os._exit(1)  # the supervisor is gone: nobody holds our port or our lock any more
        while (line := self._lines.take()) is not None:
            message = msgspec.json.decode(line, type=ToShard)
            if isinstance(message, Stop):
                self.on_stop()
            else:
                self._send(Answer(message.number, self._answer(message.command)))

    def _answer(self, command: str) -> dict[str, Any]:
        try:
            return self.on_query(command)
        except Exception as error:  # our bug: statistics must not end a shard that serves
            log.exception("query_failed", extra={"fields": {"shard": self._shard, "command": command}})
            return {"shard": self._shard, "error": f"the query failed: {error!r}"}

    def send_ready(self, disk_engine: str, *, degraded: bool) -> None:
        self._send(Ready(disk_engine, self._core, degraded))

    def _send(self, message: FromShard) -> None:
        self._lines.send(message)
        self._watch_writable()

    def _watch_writable(self) -> None:
        loop, descriptor = asyncio.get_running_loop(), self._lines.fileno()
        if self._lines.unsent_bytes:
            loop.add_writer(descriptor, self._flush)
        else:
            loop.remove_writer(descriptor)

    def _flush(self) -> None:
        self._lines.flush()
        self._watch_writable()


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

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    supervisor = multiprocessing.parent_process()
    if supervisor is None or os.getppid() != supervisor.pid:  # it died before the line above
        os._exit(1)
    stop_signals.ignore()
    logs.configure(arguments.config.log.level, arguments.config.log.format)
    link = ShardLink(arguments.link, arguments.shard, pin(arguments.core))
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(run_shard(arguments, link))
    raise SystemExit(code)
