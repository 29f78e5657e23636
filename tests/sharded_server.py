"""A server of several shards as child processes: its configuration, its figures, and the death of one of its shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardserver.cli.control import ask
from tests.server_process import PASSWORD
from tests.supervisor.servers import children, is_running, wait_until
from tests.wire_connection import WireConnection

LOOK_S = 0.01


class ShardedServer:
    """cores, config: change them between two starts. What it logs is in DIRECTORY/server.log."""

    def __init__(
        self, directory: Path, *, cores: int, config: str = "", wrapper: tuple[str, ...] = (), password: str = PASSWORD
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.data, self._log, self._file = directory / "data", directory / "server.log", directory / "server.toml"
        self.cores, self.config, self._wrapper = cores, config, wrapper
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    # Life

    def start(self, *, port: str = "0") -> None:
        """Begin the process; ready comes later."""
        self._file.write_text(self.config)
        (self.data / "run" / "ready.json").unlink(missing_ok=True)
        flags = ["--data", str(self.data), "--port", port, "--cores", str(self.cores), "--log-level", "warning"]
        command = [*self._wrapper, sys.executable, "-m", "shardserver", "--config", str(self._file), *flags]
        environment = os.environ | {"SHARDSERVER_ROOT_PASSWORD": self._password}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stderr=log)

    def serve(self) -> ShardedServer:
        """Start, and wait until all shards serve."""
        self.start()
        self.wait_ready()
        return self

    def wait_ready(self, *, other_than: int = 0, timeout_s: float = 120.0) -> dict[str, Any]:
        """ready.json, once it names all shards and none of them is process `other_than`."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            assert self._process is not None
            if self._process.poll() is not None:
                raise AssertionError(f"the server ended with {self._process.returncode}: {self.log()[-4000:]}")
            with suppress(FileNotFoundError):
                ready = json.loads((self.data / "run" / "ready.json").read_text())
                pids = [shard["pid"] for shard in ready["shards"]]
                if len(pids) == self.cores and other_than not in pids:
                    self.address = ready["tcp"]
                    return ready
            time.sleep(LOOK_S)
        raise AssertionError(f"not ready in {timeout_s:g} s: {self.log()[-4000:]}")

    def stop(self) -> int:
        """Gives the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def kill(self) -> None:
        """SIGKILL of the supervisor; returns when all processes are gone: until then shards hold the port."""
        if self._process is not None:
            shards = children(self.pid)
            self._process.kill()
            self._process.wait(30)
            wait_until(lambda: not any(map(is_running, shards)), "the shards end with their supervisor")

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    # Processes

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def shard_pid(self, shard: int) -> int:
        """0 while it has no process."""
        return int(self.status()["shards"][shard]["pid"] or 0)

    def kill_shard(self, shard: int, number: signal.Signals = signal.SIGKILL) -> int:
        """Gives the process id that it had."""
        pid = self.shard_pid(shard)
        os.kill(pid, number)
        return pid

    # What it says of itself

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """A command on the control socket. Raises ConfigError: it says no."""
        return ask(str(self.data), command, **arguments)

    def status(self) -> dict[str, Any]:
        return self.ask("status")

    def stats(self) -> list[dict[str, Any]]:
        """Of each shard, in order."""
        return list(self.ask("stats")["shards"])

    def shard_of(self, stream: str, topic: str, partition: int) -> int:
        rows = self.ask("placement")["partitions"]
        named = {(row["stream"], row["topic"], row["partition"]): row["shard"] for row in rows}
        return int(named[stream, topic, partition])

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`shardserver … --data DATA` with the same configuration and cores."""
        line = [sys.executable, "-m", "shardserver", "--config", str(self._file), "--cores", str(self.cores)]
        return subprocess.run([*line, *arguments, "--data", str(self.data)], capture_output=True, text=True, timeout=60)

    # Connections

    def connect(self, *, timeout_s: float = 40.0) -> WireConnection:
        return WireConnection(self.address, timeout_s=timeout_s)

    def connect_each(self) -> list[WireConnection]:
        """One connection on each shard, in their order."""
        found: dict[int, WireConnection] = {}
        spare = []
        while len(found) < self.cores:
            made = self.connect()
            if found.setdefault(made.shard, made) is not made:
                spare.append(made)
        for one in spare:
            one.close()
        return [found[shard] for shard in range(self.cores)]


def rule(stream: str, topic: str, *shards: int) -> str:
    """A placement rule as TOML."""
    return f'[[placement.rules]]\nstream = "{stream}"\ntopic = "{topic}"\nshards = {list(shards)}\n'
