"""Who answers the load: a server of our own, a running one, or the echo."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardserver.bench.echo import serve_echo
from shardserver.errors import ShardServerError

PASSWORD_VARIABLE = "SHARDSERVER_ROOT_PASSWORD"
READY_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 30.0


class PeerError(ShardServerError):
    """The server to be measured does not start, stop or answer as it should."""


@dataclass(frozen=True, slots=True)
class Peer:
    """pids and cores: of the processes that serve; empty when they are not known. data: its directory, if local."""

    host: str
    port: int
    password: str | None
    pids: tuple[int, ...] = ()
    cores: tuple[int, ...] = ()
    data: Path | None = None


def _peer_of(ready: Path, password: str, address: str | None = None) -> Peer:
    """From a server's ready file. address: another one than it names."""
    content = json.loads(ready.read_text())
    host, _, port = (address or content["tcp"]).rpartition(":")
    shards = content["shards"]
    cores = tuple(shard["core"] for shard in shards if shard["core"] is not None)
    return Peer(host, int(port), password, tuple(shard["pid"] for shard in shards), cores, ready.parent.parent)


@contextlib.contextmanager
def own_server(parent: Path, durability: str) -> Iterator[Peer]:
    """A server on a directory that is made in `parent` and removed at the end.

    Its other settings are the defaults and what SHARDSERVER_* variables say. Raises PeerError.
    """
    password = os.environ.get(PASSWORD_VARIABLE) or secrets.token_urlsafe(18)
    data = Path(tempfile.mkdtemp(prefix="shardserver-bench-", dir=parent))
    command = [sys.executable, "-m", "shardserver", "--port", "0", "--data", str(data)]
    command += ["--durability", durability, "--log-level", "warning"]
    process = subprocess.Popen(command, env=os.environ | {PASSWORD_VARIABLE: password}, stdin=subprocess.DEVNULL)
    try:
        _wait_ready(process, data / "run" / "ready.json")
        yield _peer_of(data / "run" / "ready.json", password)
        _stop(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(data, ignore_errors=True)


def _wait_ready(process: subprocess.Popen[bytes], ready: Path) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None:
            raise PeerError(f"the server ended with code {process.returncode} before it was ready")
        if time.monotonic() > end:
            raise PeerError(f"no {ready} within {READY_TIMEOUT_S:.0f} s")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"the server did not stop within {STOP_TIMEOUT_S:.0f} s") from error
    if code != 0:
        raise PeerError(f"the server ended with code {code}")


def running_server(address: str, data: Path | None) -> Peer:
    """A server that runs already. data: its directory, when it is on this machine: it names the processes."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None:
        raise PeerError(f"--server needs its root password in {PASSWORD_VARIABLE}")
    ready = None if data is None else data / "run" / "ready.json"
    if ready is not None and ready.exists():
        return _peer_of(ready, password, address)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise PeerError(f"--server {address!r}: host:port")
    return Peer(host, int(port), password)


@contextlib.contextmanager
def echo(cores: tuple[int, ...], reply_bytes: int, messages: int, depth: int) -> Iterator[Peer]:
    """The echo in a process of its own, on the server's cores. Arguments: as of serve_echo."""
    spawn = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        arguments = (listening, cores, reply_bytes, messages, depth)
        process = spawn.Process(target=_run_echo, args=arguments, daemon=True)
        process.start()
        assert process.pid is not None
        try:
            host, port = listening.getsockname()[:2]
            yield Peer(host, port, None, (process.pid,), cores)
        finally:
            process.terminate()
            process.join()


def _run_echo(listening: socket.socket, cores: tuple[int, ...], reply_bytes: int, messages: int, depth: int) -> None:
    if cores:
        os.sched_setaffinity(0, cores)
    listening.setblocking(False)
    serve_echo(listening.fileno(), reply_bytes, messages, depth)
