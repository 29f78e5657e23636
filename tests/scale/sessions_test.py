"""Thousands of connections at a time: what opening, asking and closing them costs, and that each gets its own answers.

Prints a table of figures; they are measured, not judged. The exit code is 1 when a connection is refused below the
limit, taken above it, answered wrongly, or still listed when it is gone.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from shardserver.client.connection import Connection
from shardserver.errors import ProtocolError
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer
from tests.supervisor.servers import wait_until
from tests.wire_connection import WireConnection

SHARDS = 2


class Crowd:
    """Connections without a user that ask for a ping."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._stack = ExitStack()
        self.open: list[Connection] = []

    def add(self, count: int) -> None:
        for _ in range(count):
            made = Connection(self._host, int(self._port), timeout_s=120)
            self.open.append(self._stack.enter_context(made))
            made.log_out()  # a request that needs no user, and without which the connection would be closed as silent

    def ask_all(self) -> None:
        """Raises ProtocolError: an answer is not to the question."""
        for one in self.open:
            one.log_out()

    def close(self) -> None:
        self._stack.close()
        self.open.clear()


def run(directory: Path, count: int) -> bool:
    """True: all was as it should be."""
    # Each shard takes half of them, the connection that looks, and no more.
    server = ShardedServer(directory, cores=SHARDS, config=f"[net]\nmax_connections = {count // SHARDS + 1}\n")
    try:
        server.serve()
        return _judge(server, count)
    finally:
        server.kill()


def _judge(server: ShardedServer, count: int) -> bool:
    crowd = Crowd(server.address)
    with server.connect(timeout_s=120) as watcher:
        empty_bytes = memory_bytes(server)
        timed(f"open {count} connections, one request each", lambda: crowd.add(count))
        timed("one request of each", crowd.ask_all)
        used = (memory_bytes(server) - empty_bytes) // count
        print(f"memory of a connection{'':<28}{used:>10} bytes")
        timed("what top asks for, of all shards", lambda: server.ask("top"))
        listed = _count(watcher)
        timed("list all clients", lambda: _count(watcher))
        refused = _is_refused(server, crowd)
        timed("close all", crowd.close)
        wait_until(lambda: _count(watcher) == 1, "closed connections are not listed")
        told = [int(shard["connections"]) for shard in server.stats()]
    good = listed == count + 1 and refused and sum(told) == 1
    print(f"listed {listed} of {count + 1}, {'refused' if refused else 'TAKEN'} above the limit, {sum(told)} left")
    return good


def _is_refused(server: ShardedServer, crowd: Crowd) -> bool:
    """Fill what is left, then one more."""
    crowd.add(SHARDS - 1)
    try:
        crowd.add(1)
    except (OSError, ProtocolError):  # closed at once: before or after the request was written
        return True
    return False


def _count(watcher: WireConnection) -> int:
    return len(watcher.ask(Command.GET_CLIENTS).clients)


def memory_bytes(server: ShardedServer) -> int:
    processes = [psutil.Process(server.shard_pid(number)) for number in range(SHARDS)]
    return sum(one.memory_info().rss for one in processes)


def timed(what: str, step: Callable[[], object]) -> None:
    began = time.monotonic()
    step()
    print(f"{what:<50}{time.monotonic() - began:>10.2f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=9000)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="shardserver-sessions-") as directory:
        return 0 if run(Path(directory), arguments.connections) else 1


if __name__ == "__main__":
    sys.exit(main())
