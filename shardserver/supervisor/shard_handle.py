"""One shard as its supervisor sees it: process, link, endpoint, state, restarts."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from shardserver.config import Config
from shardserver.errors import ProtocolError
from shardserver.supervisor import huge_heap, stop_signals
from shardserver.supervisor.descriptors import close_all
from shardserver.supervisor.endpoint import Endpoint, make_endpoint
from shardserver.supervisor.lines import LineSocket
from shardserver.supervisor.messages import (
    Answer,
    FromShard,
    NewConfig,
    Own,
    Recovered,
    Recovering,
    Serve,
    Stop,
    ToShard,
)
from shardserver.supervisor.queries import Reply, WaitingQueries
from shardserver.supervisor.resources import arena_bytes
from shardserver.supervisor.shard_exit import ReadOnlyRule
from shardserver.supervisor.shard_process import ShardArguments, run_shard_process
from shardserver.supervisor.stall_watch import Silence

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S, GOOD_SERVICE_S = 0.1, 5.0, 30.0
# The statistics of many thousand partitions; a bound against a broken shard, not a budget.
MAX_ANSWER_BYTES = 64 << 20
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What is the same for all shards of a server. target: the entry of the spawned process."""

    config: Config
    data_directory: str
    shards: int
    port: int
    root_password_hash: str | None
    partition_limit: int
    target: Callable[[ShardArguments], None] = run_shard_process


class Backoff:
    """Seconds before each restart: they double, begin again after good service, and never end."""

    def __init__(self) -> None:
        self._next_s = FIRST_BACKOFF_S

    def after(self, served_s: float) -> float:
        if served_s >= GOOD_SERVICE_S:
            self._next_s = FIRST_BACKOFF_S
        wait_s, self._next_s = self._next_s, min(self._next_s * 2, LONGEST_BACKOFF_S)
        return wait_s


class ShardHandle:
    """Owned by the supervisor's loop. state: down, starting, recovering, recovered or ready."""

    def __init__(self, number: int, plan: ShardPlan, listener: socket.socket | None, core: int | None) -> None:
        self.number, self.wanted_core, self.core = number, core, core
        self._plan, self._listener = plan, listener
        self.state = "down"
        self.recovered: Recovered | None = None
        self.progress: Recovering | None = None  # while it recovers
        self.restarts = -1
        self._had_clients = False
        self.start_at = 0.0
        self.exit_code: int | None = None
        self.process: BaseProcess | None = None
        self.link: LineSocket | None = None
        self.endpoint: Endpoint | None = None
        self.silence = Silence()
        self.link_has_ended = False
        self.restart_in_s = 0.0
        self._ready_at: float | None = None
        self._backoff = Backoff()
        self._rule = ReadOnlyRule()
        self._read_only = False
        self.has_served = False
        self._queries = WaitingQueries(number, time.monotonic)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    # Its process

    def start(self, *, had_clients: bool) -> None:
        """Spawn it, with what is its own on the link. Raises OSError: descriptors, memory or processes ran out.

        had_clients: the server was open before, so that peers may ask again for what the former process left.
        """
        self._had_clients = had_clients
        self.state, self.recovered, self.exit_code, self.link_has_ended = "starting", None, None, False
        self._ready_at, self.silence = None, Silence()
        self.restarts += 1
        try:
            self.process = self._spawn()
        except OSError:
            self._let_go()
            raise

    def _spawn(self) -> BaseProcess:
        self.endpoint, own = make_endpoint(self.number, arena_bytes(self._plan.config))
        ours, theirs = socket.socketpair()
        with theirs:
            self.link = LineSocket(ours, MAX_ANSWER_BYTES)
            self.link.send(Own(), own)
            process = SPAWN.Process(
                target=self._plan.target, args=(self._arguments(theirs),), name=f"shard-{self.number}"
            )
            os.environ[huge_heap.VARIABLE] = huge_heap.with_huge_heap(os.environ.get(huge_heap.VARIABLE))
            resource_tracker.ensure_running()  # it would take our mask away inside
            with stop_signals.held_back():
                process.start()
        return process

    def _arguments(self, link: socket.socket) -> ShardArguments:
        plan = self._plan
        return ShardArguments(
            self.number,
            plan.config,
            plan.data_directory,
            self._listener,
            link,
            plan.root_password_hash,
            self.wanted_core,
            self._read_only,
            is_restart=self._had_clients,
            shards=plan.shards,
            port=plan.port,
            partition_limit=plan.partition_limit,
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def take_exit(self) -> None:
        """Call when the process has ended: reaps it, answers who waits, says when to start again."""
        assert self.process is not None
        self.process.join()
        self.exit_code = self.process.exitcode
        self.process.close()
        self._let_go()
        self._read_only = self._rule.after(self.exit_code, time.monotonic())

    def _let_go(self) -> None:
        """Close what belonged to the process, and set the time of the next start."""
        if self.link is not None:
            self.link.close()
        if self.endpoint is not None:
            self.endpoint.close()
        self.process, self.link, self.endpoint, self.state, self.recovered = None, None, None, "down", None
        self.progress = None
        self._queries.end_all("the shard died")
        now = time.monotonic()
        self.restart_in_s = self._backoff.after(now - self._ready_at if self._ready_at is not None else 0.0)
        self.start_at = now + self.restart_in_s

    def keep_pinned(self) -> bool:
        """Put the affinity back after a change of the cpuset. True when the core we may name has changed."""
        if self.wanted_core is None or self.pid is None or self.state != "ready":
            return False
        former, self.core = self.core, self.wanted_core if pin_threads(self.pid, self.wanted_core) else None
        return self.core != former

    # Its link

    def receive(self) -> list[str]:
        """Take what the shard says; gives the states that it has come to. Its end is told by the process."""
        assert self.link is not None
        self.link_has_ended = not self.link.receive()
        reached: list[str] = []
        try:
            while (line := self.link.take()) is not None:
                former = self.state
                self._on_message(msgspec.json.decode(line, type=FromShard))
                reached += [self.state] if self.state != former else []
        except (ProtocolError, msgspec.DecodeError) as error:
            self._break_link(error)
        return reached

    def _on_message(self, message: FromShard) -> None:
        if isinstance(message, Answer):
            self._queries.answer(message.number, message.content)
        elif isinstance(message, Recovering):
            self.state, self.progress = "recovering", message
        elif isinstance(message, Recovered):
            self.state, self.recovered, self.core, self.progress = "recovered", message, message.core, None
        elif self.recovered is None:
            raise ProtocolError("ready before it has recovered")
        else:
            self.state, self._ready_at, self.has_served = "ready", time.monotonic(), True
        self.silence = Silence()  # it has spoken, and its new state has its own limit

    def send(self, message: ToShard, descriptors: Sequence[int] = ()) -> None:
        """The descriptors are no longer the caller's. Nothing happens when its process has ended."""
        if self.link is None:
            close_all(descriptors)
            return
        try:
            self.link.send(message, descriptors)
        except ProtocolError as error:
            self._break_link(error)

    def _break_link(self, error: Exception) -> None:
        log.error("shard_link_broken", extra={"fields": {"shard": self.number, "error": str(error)}})
        self.kill()

    def ask(self, command: str, arguments: dict[str, Any], reply: Reply) -> None:
        """The shard's answer, or an error in its place: it is down, dies, is late, or too many wait."""
        if self.state in ("down", "starting"):
            reply(self._queries.error("the shard is down or starting"))
        elif self._queries.is_full:
            reply(self._queries.error("too many queries wait"))
        else:
            self.send(self._queries.add(command, arguments, reply))

    def next_deadline(self) -> float | None:
        return self._queries.next_deadline()

    def end_late_queries(self) -> None:
        self._queries.end_late()

    def reconfigure(self, message: NewConfig) -> None:
        """Of its process now, and of those that are started later."""
        self._plan = replace(self._plan, config=message.config, partition_limit=message.partition_limit)
        self.send(message)

    def serve(self) -> None:
        self.send(Serve())

    def stop(self) -> None:
        self.send(Stop())

    def status(self) -> dict[str, Any]:
        return {
            "shard": self.number,
            "state": self.state,
            "pid": self.pid,
            "core": self.core,
            "restarts": self.restarts,
        }


def pin_threads(pid: int, core: int) -> bool:
    """Pin all threads of a process to a core, as far as they are not. False when that is refused."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getaffinity(int(thread)) != {core}:
                    os.sched_setaffinity(int(thread), {core})
    except OSError:
        return False
    return True
