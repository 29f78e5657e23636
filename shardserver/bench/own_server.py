"""A server of the bench's own: started on a new directory, killed and started again, stopped."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from types import TracebackType
from typing import Any

from shardserver.bench.peers import PASSWORD_VARIABLE, Peer, PeerError, peer_of

READY_TIMEOUT_S, STOP_TIMEOUT_S, LOOK_S = 120.0, 150.0, 0.02


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """How an own server is started.

    shards: one core each as the server chooses; with shares_core all on the first core that this process may use.
    environment: SHARDSERVER_* variables beside those that are set already. config: text of a TOML file, or empty.
    """

    durability: str = "fsync"
    shards: int = 1
    shares_core: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    config: str = ""


@dataclass
class OwnServer:
    """Its directory is made in `parent` and removed when the context is left, its processes ended. Raises PeerError."""

    parent: Path
    setup: ServerSetup
    data: Path = field(init=False)
    peer: Peer = field(init=False)

    def __enter__(self) -> OwnServer:
        self._password = os.environ.get(PASSWORD_VARIABLE) or secrets.token_urlsafe(18)
        self._home = Path(tempfile.mkdtemp(prefix="shardserver-bench-", dir=self.parent))
        self.data = self._home / "data"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            (self._home / "config.toml").write_text(self.setup.config)
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._stop()
        finally:
            self._remove()

    def start(self) -> Peer:
        """Start it and wait until it is ready."""
        ready = self.data / "run" / "ready.json"
        ready.unlink(missing_ok=True)
        self._process = _spawn(self._command(), self._environment(), shares_core=self.setup.shares_core)
        _wait_ready(self._process, ready)
        self.peer = peer_of(ready, self._password)
        return self.peer

    def restart(self) -> Peer:
        """A clean stop, behind which all is in segments, then a start."""
        self._stop()
        return self.start()

    def kill(self) -> None:
        """kill -9 of the supervisor and of every shard; returns when none of them runs any more."""
        assert self._process is not None
        self._process.kill()
        for pid in self.peer.pids:
            _kill(pid)
        self._process.wait()
        _wait_gone(self.peer.pids)

    def statistics(self) -> list[dict[str, Any]]:
        """What `shardserver stats` says of each shard."""
        command = [sys.executable, "-m", "shardserver", "stats", "--json", "--data", str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"the server gives no statistics: {done.stderr.strip()}")
        shards: list[dict[str, Any]] = json.loads(done.stdout)["shards"]
        return shards

    def log_figure(self, *names: str) -> int:
        """Of the shards' logs together: what their statistics hold under these names, each within the last."""
        return sum(int(reduce(getitem, names, shard["log"])) for shard in self.statistics())

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "shardserver", "--config", str(self._home / "config.toml")]
        command += ["--port", "0", "--data", str(self.data), "--cores", str(self.setup.shards)]
        return [*command, "--durability", self.setup.durability, "--log-level", "warning"]

    def _environment(self) -> Mapping[str, str]:
        return os.environ | dict(self.setup.environment) | {PASSWORD_VARIABLE: self._password}

    def _stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"the server did not stop within {STOP_TIMEOUT_S:.0f} s") from error
        if code != 0:
            raise PeerError(f"the server ended with code {code}")

    def _remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            _wait_gone(self.peer.pids if hasattr(self, "peer") else ())
        shutil.rmtree(self._home, ignore_errors=True)


def _spawn(command: list[str], environment: Mapping[str, str], *, shares_core: bool) -> subprocess.Popen[bytes]:
    """A child inherits the affinity that its parent has at that moment."""
    usable = os.sched_getaffinity(0)
    if shares_core:
        os.sched_setaffinity(0, {min(usable)})
    try:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, usable)


def _wait_ready(process: subprocess.Popen[bytes], ready: Path) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None:
            raise PeerError(f"the server ended with code {process.returncode} before it was ready")
        if time.monotonic() > end:
            raise PeerError(f"no {ready} within {READY_TIMEOUT_S:.0f} s")
        time.sleep(LOOK_S)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_gone(pids: tuple[int, ...]) -> None:
    """Until each has ended: it is gone, or a zombie that its new parent has not collected."""
    end = time.monotonic() + STOP_TIMEOUT_S
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > end:
            raise PeerError("a killed shard still runs")
        time.sleep(LOOK_S)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
