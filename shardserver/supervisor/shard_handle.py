"""One shard as its supervisor sees it: process, link, state, restarts, queries that wait."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from shardserver.config import Config
from shardserver.errors import ProtocolError
from shardserver.supervisor import stop_signals
from shardserver.supervisor.lines import LineSocket
from shardserver.supervisor.messages import Answer, FromShard, Query, Ready, Recovering, Stop
from shardserver.supervisor.shard_exit import ReadOnlyRule
from shardserver.supervisor.shard_process import ShardArguments, run_shard_process

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S, GOOD_SERVICE_S = 0.1, 5.0, 30.0
QUERY_DEADLINE_S = 5.0
MAX_QUERIES = 64
# The statistics of many thousand partitions; a bound against a broken shard, not a budget.
MAX_ANSWER_BYTES = 64 << 20
SPAWN = multiprocessing.get_context("spawn")

Reply = Callable[[dict[str, Any]], None]


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
    """Owned by the supervisor's loop. state: down, starting, recovering or ready."""

    def __init__(
        self, number: int, config: Config, data: str, listener: socket.socket, core: int | None, root_hash: str | None
    ) -> None:
        self.number, self.wanted_core, self.core = number, core, core
        self._config, self._data, self._listener, self._root_hash = config, data, listener, root_hash
        self.state = "down"
        self.ready: Ready | None = None
        self.restarts = -1
        self.start_at = 0.0
        self.exit_code: int | None = None
        self.process: BaseProcess | None = None
        self.link: LineSocket | None = None
        self.link_has_ended = False
        self.restart_in_s = 0.0
        self._ready_at: float | None = None
        self._backoff = Backoff()
        self._rule = ReadOnlyRule()
        self._read_only = False
        self.has_served = False
        self._queries: dict[int, tuple[float, Reply]] = {}
        self._last_query = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        arguments = ShardArguments(
            self.number,
            self._config,
            self._data,
            self._listener,
            theirs,
            self._root_hash,
            self.wanted_core,
            self._read_only,
        )
        self.process = SPAWN.Process(target=run_shard_process, args=(arguments,), name=f"shard-{self.number}")
        resource_tracker.ensure_running()  # it would take our mask away inside
        with stop_signals.held_back():
            self.process.start()
        theirs.close()
        self.link = LineSocket(ours, MAX_ANSWER_BYTES)
        self.state, self.ready, self.exit_code, self.link_has_ended = "starting", None, None, False
        self._ready_at = None
        self.restarts += 1

    def receive(self) -> bool:
        """Take what the shard says. True when it has become ready. Its end is told by the process."""
        assert self.link is not None
        self.link_has_ended = not self.link.receive()
        became_ready = False
        try:
            while (line := self.link.take()) is not None:
                message = msgspec.json.decode(line, type=FromShard)
                became_ready |= self._on_message(message)
        except (ProtocolError, msgspec.DecodeError) as error:
            log.error("shard_link_broken", extra={"fields": {"shard": self.number, "error": str(error)}})
            self.kill()
        return became_ready

    def _on_message(self, message: FromShard) -> bool:
        if isinstance(message, Answer):
            _, reply = self._queries.pop(message.number, (0.0, None))
            if reply is not None:  # None: its deadline has passed
                reply(message.content)
        elif isinstance(message, Recovering):
            self.state = "recovering"
        else:
            self.state, self.ready, self.core = "ready", message, message.core
            self._ready_at, self.has_served = time.monotonic(), True
            return True
        return False

    def ask(self, command: str, reply: Reply) -> None:
        """The shard's answer, or an error in its place: it is down, dies, is late, or too many wait."""
        if self.link is None or self.state not in ("recovering", "ready"):
            reply(self._error("the shard is down or starting"))
        elif len(self._queries) >= MAX_QUERIES:
            reply(self._error("too many queries wait"))
        else:
            self._last_query += 1
            self._queries[self._last_query] = (time.monotonic() + QUERY_DEADLINE_S, reply)
            self.link.send(Query(self._last_query, command))

    def status(self) -> dict[str, Any]:
        return {
            "shard": self.number,
            "state": self.state,
            "pid": self.pid,
            "core": self.core,
            "restarts": self.restarts,
        }

    def _error(self, sentence: str) -> dict[str, Any]:
        return {"shard": self.number, "error": sentence}

    def next_deadline(self) -> float | None:
        return min((deadline for deadline, _ in self._queries.values()), default=None)

    def end_late_queries(self) -> None:
        now = time.monotonic()
        for number in [one for one, (deadline, _) in self._queries.items() if deadline <= now]:
            self._queries.pop(number)[1](self._error(f"no answer within {QUERY_DEADLINE_S:g} s"))

    def stop(self) -> None:
        if self.link is not None:
            self.link.send(Stop())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def take_exit(self) -> None:
        """Call when the process has ended: reaps it, answers who waits, says when to start again."""
        assert self.process is not None and self.link is not None
        self.process.join()
        self.exit_code = self.process.exitcode
        self.link.close()
        self.process.close()
        self.process, self.link, self.state, self.ready = None, None, "down", None
        waiting, self._queries = self._queries, {}
        for _, reply in waiting.values():
            reply(self._error("the shard died"))
        now = time.monotonic()
        self._read_only = self._rule.after(self.exit_code, now)
        self.restart_in_s = self._backoff.after(now - self._ready_at if self._ready_at is not None else 0.0)
        self.start_at = now + self.restart_in_s

    def keep_pinned(self) -> bool:
        """Put the affinity back after a change of the cpuset. True when the core we may name has changed."""
        if self.wanted_core is None or self.pid is None or self.state != "ready":
            return False
        former, self.core = self.core, self.wanted_core if pin_threads(self.pid, self.wanted_core) else None
        return self.core != former


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
