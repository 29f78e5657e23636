"""Who answers the load: a running server, or the echo. A server of our own: own_server.py."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardserver.bench.echo import serve_echo
from shardserver.bench.plan import SEND_REPLY_BYTES, LoadSpec
from shardserver.errors import ShardServerError

PASSWORD_VARIABLE = "SHARDSERVER_ROOT_PASSWORD"


class PeerError(ShardServerError):
    """The server to be measured does not start, stop or answer as it should."""


@dataclass(frozen=True, slots=True)
class Peer:
    """pids and cores: of the processes that serve, one each; empty when not known. data: its directory, if local."""

    host: str
    port: int
    password: str | None
    pids: tuple[int, ...] = ()
    cores: tuple[int, ...] = ()
    data: Path | None = None


def peer_of(ready: Path, password: str, address: str | None = None) -> Peer:
    """From a server's ready file. address: another one than it names."""
    content = json.loads(ready.read_text())
    host, _, port = (address or content["tcp"]).rpartition(":")
    shards = content["shards"]
    cores = tuple(shard["core"] for shard in shards if shard["core"] is not None)
    return Peer(host, int(port), password, tuple(shard["pid"] for shard in shards), cores, ready.parent.parent)


def running_server(address: str, data: Path | None) -> Peer:
    """A server that runs already. data: its directory, when it is on this machine: it names the processes."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None:
        raise PeerError(f"--server needs its root password in {PASSWORD_VARIABLE}")
    ready = None if data is None else data / "run" / "ready.json"
    if ready is not None and ready.exists():
        return peer_of(ready, password, address)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise PeerError(f"--server {address!r}: host:port")
    return Peer(host, int(port), password)


@contextlib.contextmanager
def echo(cores: tuple[int, ...], spec: LoadSpec) -> Iterator[Peer]:
    """An echo for this load in a process of its own, on the server's cores, with replies of the server's sizes.

    Polls of a topic whose messages differ in size get the mean.
    """
    spawn = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        process = spawn.Process(target=_run_echo, args=(listening, cores, spec), daemon=True)
        process.start()
        assert process.pid is not None
        try:
            host, port = listening.getsockname()[:2]
            yield Peer(host, port, None, (process.pid,), cores[:1])
        finally:
            process.terminate()
            process.join()


def _run_echo(listening: socket.socket, cores: tuple[int, ...], spec: LoadSpec) -> None:
    if cores:
        os.sched_setaffinity(0, cores[:1])
    listening.setblocking(False)
    shape = spec.shape
    serve_echo(listening.fileno(), SEND_REPLY_BYTES, shape.poll_reply_bytes, shape.messages_per_batch, spec.depth)
