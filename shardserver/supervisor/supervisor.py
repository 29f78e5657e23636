"""The supervisor: spawns the shard, watches it, restarts it, answers the control socket, ends it all."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import selectors
import signal
import socket
import struct
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from shardserver.config import Config
from shardserver.io_uring.choose import check_disk
from shardserver.supervisor.data_directory import DataDirectory
from shardserver.supervisor.shard_process import ShardArguments, run_shard_process
from shardserver.supervisor.sockets import listen

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S, GOOD_SERVICE_S = 0.1, 5.0, 30.0
# What the server adds to the shard's own deadline before it is killed.
KILL_MARGIN_S = 0.8


class Supervisor:
    """Owns the listeners, so that a shard's death resets no queued connection."""

    def __init__(self, config: Config, data: DataDirectory, cores: list[int], root_password_hash: str | None) -> None:
        self._config, self._data, self._cores = config, data, cores
        self._root_password_hash = root_password_hash
        check_disk(config.server.disk_engine, data.path)
        self._listeners = listen(config.server.host, config.server.port, 1)
        self._spawn = multiprocessing.get_context("spawn")
        self._process: BaseProcess | None = None
        self._link: Connection | None = None
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._stop_deadline = 0.0
        self._backoff_s = FIRST_BACKOFF_S
        self._started_at = 0.0
        self._start_at: float | None = 0.0
        self._restarts = -1
        self._queries: list[tuple[socket.socket, str]] = []
        self._exit_code = 0

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listeners[0].getsockname()[:2]
        return host, port

    def run(self) -> int:
        """Serve until a signal; gives the exit code."""
        control = self._open_control()
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._selector.register(wake_read, selectors.EVENT_READ, self._on_signal)
        self._selector.register(control, selectors.EVENT_READ, self._on_control)
        try:
            while self._step():
                pass
        finally:
            self._kill()
            control.close()
            self._data.close()
        return self._exit_code

    def _step(self) -> bool:
        now = time.monotonic()
        if self._process is None:
            if self._stopping:
                return False
            if self._start_at is not None and now >= self._start_at:
                self._start_shard()
        if self._stopping and now >= self._stop_deadline:
            log.error("shutdown_deadline_passed")
            self._exit_code = 1
            return False
        for key, _ in self._selector.select(self._timeout(now)):
            key.data(key.fileobj)
        return True

    def _timeout(self, now: float) -> float | None:
        if self._stopping:
            return max(0.0, self._stop_deadline - now)
        return max(0.0, self._start_at - now) if self._process is None and self._start_at is not None else None

    def _start_shard(self) -> None:
        ours, theirs = self._spawn.Pipe()
        core = self._cores[0] if self._config.server.pin == "on" else None
        arguments = ShardArguments(
            0, self._config, self._data.path, self._listeners[0], theirs, self._root_password_hash, core
        )
        self._process = self._spawn.Process(target=run_shard_process, args=(arguments,), name="shard-0")
        self._process.start()
        theirs.close()
        self._link, self._started_at = ours, time.monotonic()
        self._restarts += 1
        self._selector.register(ours, selectors.EVENT_READ, self._on_link)
        self._selector.register(self._process.sentinel, selectors.EVENT_READ, self._on_exit)

    def _on_link(self, link: Connection) -> None:
        if link != self._link:  # the process ended in the same round of events
            return
        try:
            message = link.recv()
        except (EOFError, OSError):
            self._selector.unregister(link)
            return
        if message["kind"] == "ready":
            self._on_ready(message)
        elif message["kind"] == "answer":
            self._on_answer(message)

    def _on_ready(self, message: dict[str, Any]) -> None:
        host, port = self.address
        assert self._process is not None
        content = {
            "tcp": f"{host}:{port}",
            "shards": [{"shard": 0, "pid": self._process.pid, "core": message["core"]}],
            "supervisor_pid": os.getpid(),
            "disk_engine": message["disk_engine"],
            "durability": self._config.server.durability,
            "degraded": False,
        }
        self._data.write_ready(content)
        log.info("ready", extra={"fields": content})

    def _on_exit(self, sentinel: int) -> None:
        assert self._process is not None
        self._selector.unregister(sentinel)
        self._process.join()
        code = self._process.exitcode
        if self._link is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._link)
            self._link.close()
        self._process, self._link = None, None
        for client, _ in self._queries:
            client.close()
        self._queries.clear()
        if self._stopping:
            self._exit_code = 0 if code == 0 else 1
            return
        if time.monotonic() - self._started_at >= GOOD_SERVICE_S:
            self._backoff_s = FIRST_BACKOFF_S
        log.error("shard_died", extra={"fields": {"shard": 0, "exit_code": code, "restart_in_s": self._backoff_s}})
        self._start_at = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, LONGEST_BACKOFF_S)

    def _on_signal(self, wake: int) -> None:
        os.read(wake, 64)
        if self._stopping:
            log.warning("second_signal")
            self._exit_code, self._stop_deadline = 1, 0.0
            return
        self._stopping = True
        self._data.remove_ready()
        self._stop_deadline = time.monotonic() + self._config.server.shutdown_deadline_s + KILL_MARGIN_S
        log.info("stopping")
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.send({"kind": "stop"})

    def _kill(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join()

    # The control socket

    def _open_control(self) -> socket.socket:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        former = os.umask(0o177)
        try:
            control.bind(self._data.control_socket)
        finally:
            os.umask(former)
        control.listen()
        control.setblocking(False)
        return control

    def _on_control(self, control: Any) -> None:
        client, _ = control.accept()
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        if uid not in (0, os.geteuid()):
            client.close()
            return
        client.settimeout(1.0)
        try:
            request = json.loads(client.makefile("rb").readline(65536))
            self._ask(client, str(request["command"]))
        except (OSError, ValueError, KeyError, TypeError):
            client.close()

    def _ask(self, client: socket.socket, command: str) -> None:
        if command != "stats":
            self._reply(client, {"error": f"unknown command {command}"})
        elif self._link is None:
            self._reply(client, {"error": "the shard is down"})
        else:
            self._queries.append((client, command))
            self._link.send({"kind": "query", "command": command})

    def _on_answer(self, message: dict[str, Any]) -> None:
        client, _ = self._queries.pop(0)
        self._reply(client, {"restarts": self._restarts, "shards": [message["content"]]})

    def _reply(self, client: socket.socket, content: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            client.sendall(json.dumps(content, default=str).encode() + b"\n")
        client.close()
