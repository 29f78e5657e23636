"""The shard's process: what it is given, and its side of the link to the supervisor."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import mmap
import multiprocessing
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil
import uvloop

from shardserver.config import Config, ServerConfig
from shardserver.errors import ProtocolError
from shardserver.memory.board import BOARD_BYTES, Board
from shardserver.supervisor import logs, stop_signals
from shardserver.supervisor.descriptors import OwnDescriptors, PeerDescriptors, close_all
from shardserver.supervisor.lines import LineSocket
from shardserver.supervisor.messages import (
    MAX_REQUEST_BYTES,
    Answer,
    FromShard,
    NewConfig,
    Own,
    Peer,
    PeerGone,
    Query,
    Ready,
    Recovered,
    Recovering,
    Serve,
    Stop,
    ToShard,
)
from shardserver.supervisor.shard_exit import ShardExit
from shardserver.supervisor.stall_watch import beat_interval_s

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # prctl(2)

# A request's arguments travel on in a query, encoded anew: what was one byte may be six.
MAX_QUERY_BYTES = 8 * MAX_REQUEST_BYTES

Content = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShardArguments:
    """Travels to the spawned process.

    listener: None when it accepts no connections. port: of the server's listeners. root_password_hash: for a metadata
    log that has no user yet. is_restart: clients were served before, and other shards may have survived the former
    process. shards: how many there are. partition_limit: how many partitions the server can carry.
    """

    shard: int
    config: Config
    data_directory: str
    listener: socket.socket | None
    link: socket.socket
    root_password_hash: str | None
    core: int | None
    read_only: bool = False
    is_restart: bool = False
    shards: int = 1
    port: int = 0
    partition_limit: int = 1 << 20


class ShardLink:
    """Messages to and from the supervisor; its end is ours too. Set the callbacks before `start`.

    on_own, on_peer: the descriptors become the callee's. on_serve: accept connections. on_query(command, arguments):
    gives the answer, or an awaitable of it. on_config: a reload, at any time after on_own.
    """

    def __init__(self, connected: socket.socket, shard: int, core: int | None, config: ServerConfig) -> None:
        self._lines = LineSocket(connected, MAX_QUERY_BYTES, takes_descriptors=True)
        self._shard, self._core = shard, core
        self._beat_interval_s = beat_interval_s(config.stall_limit_s, config.recovery_stall_limit_s)
        self._answering: set[asyncio.Task[None]] = set()
        self.on_own: Callable[[OwnDescriptors], None] = close_all
        self.on_peer: Callable[[int, bool, PeerDescriptors], None] = lambda number, is_serving, peer: close_all(peer)
        self.on_peer_gone: Callable[[int], None] = lambda number: None
        self.on_serve: Callable[[], None] = lambda: None
        self.on_stop: Callable[[], None] = lambda: None
        self.on_config: Callable[[NewConfig], None] = lambda message: None
        self.on_query: Callable[[str, Content], Content | Awaitable[Content]] = self._recovering

    def _recovering(self, command: str, arguments: Content) -> Content:
        return {"shard": self._shard, "state": "recovering"}

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._lines.fileno(), self._receive)
        self._send(Recovering())

    # Received

    def _receive(self) -> None:
        try:
            if not self._lines.receive():
                os._exit(1)  # the supervisor is gone: nobody holds our port or our lock any more
            while (line := self._lines.take()) is not None:
                self._on_message(msgspec.json.decode(line, type=ToShard))
        except (ProtocolError, msgspec.DecodeError) as error:
            log.critical("link_broken", extra={"fields": {"shard": self._shard, "error": str(error)}})
            os._exit(ShardExit.LINK_BROKEN)

    def _on_message(self, message: ToShard) -> None:
        if isinstance(message, Own):
            own = OwnDescriptors(*self._lines.take_descriptors(message.descriptors))
            self._start_beating(own.arena)
            self.on_own(own)
        elif isinstance(message, Peer):
            peer = PeerDescriptors(*self._lines.take_descriptors(message.descriptors))
            self.on_peer(message.number, message.is_serving, peer)
        elif isinstance(message, PeerGone):
            self.on_peer_gone(message.number)
        elif isinstance(message, Serve):
            self.on_serve()
        elif isinstance(message, Stop):
            self.on_stop()
        elif isinstance(message, NewConfig):
            self.on_config(message)
        else:
            self._answer(message)

    # The beat

    def _start_beating(self, arena: int) -> None:
        """From a timer of the loop: a loop that stands still does not beat."""
        board = Board(mmap.mmap(arena, BOARD_BYTES))
        if self._beat_interval_s:
            self._beat(board)

    def _beat(self, board: Board) -> None:
        board.beat()
        asyncio.get_running_loop().call_later(self._beat_interval_s, self._beat, board)

    # Answers

    def _answer(self, query: Query) -> None:
        try:
            content = self.on_query(query.command, query.arguments)
        except Exception as error:  # our bug: statistics must not end a shard that serves
            content = self._failed(query, error)
        if isinstance(content, dict):
            self._send(Answer(query.number, content))
            return
        task = asyncio.ensure_future(self._answer_later(query, content))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer_later(self, query: Query, content: Awaitable[Content]) -> None:
        try:
            answer = await content
        except Exception as error:  # as above
            answer = self._failed(query, error)
        self._send(Answer(query.number, answer))

    def _failed(self, query: Query, error: Exception) -> Content:
        log.error("query_failed", exc_info=error, extra={"fields": {"shard": self._shard, "command": query.command}})
        return {"shard": self._shard, "error": f"the query failed: {error!r}"}

    # Sent

    def send_progress(self, progress: Recovering) -> None:
        self._send(progress)

    def send_recovered(self, disk_engine: str, *, degraded: bool) -> None:
        """Answers peers from now on; on_serve follows when all shards have come so far."""
        self._send(Recovered(disk_engine, self._core, degraded))

    def send_ready(self) -> None:
        self._send(Ready())

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

    run_process(arguments, run_shard)


def run_process(
    arguments: ShardArguments, run: Callable[[ShardArguments, ShardLink], Coroutine[Any, Any, int]]
) -> None:
    """Bound to the supervisor's life, pinned, on a loop of its own; the exit code is what `run` gives."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    supervisor = multiprocessing.parent_process()
    if supervisor is None or os.getppid() != supervisor.pid:  # it died before the line above
        os._exit(1)
    stop_signals.ignore()
    logs.configure(arguments.config.log.level, arguments.config.log.format)
    link = ShardLink(arguments.link, arguments.shard, pin(arguments.core), arguments.config.server)
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(run(arguments, link))
    raise SystemExit(code)
