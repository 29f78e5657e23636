"""Servers in unusual circumstances, and waiting for what has no event."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.server_process import PASSWORD, ServerProcess


class WrappedServer(ServerProcess):
    """Started by another command, such as unshare, that ends with the server's exit code."""

    def __init__(self, data: Path, *flags: str, wrapper: list[str]) -> None:
        super().__init__(data, *flags)
        self._wrapper, self._all_flags = wrapper, flags

    def start(self, *, port: str = "0") -> None:
        command = [*self._wrapper, sys.executable, "-m", "shardserver", "--data", str(self.data), "--port", port]
        environment = os.environ | {"SHARDSERVER_ROOT_PASSWORD": PASSWORD}
        self._process = subprocess.Popen([*command, *self._all_flags], env=environment, stderr=subprocess.PIPE)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


def run_server(data: Path, *flags: str, wrapper: list[str] | None = None) -> tuple[int, str]:
    """Exit code and standard error of a server that is expected to end by itself."""
    command = [*(wrapper or []), sys.executable, "-m", "shardserver", "--data", str(data), "--port", "0", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stderr


def command(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `shardserver …`."""
    ended = subprocess.run(
        [sys.executable, "-m", "shardserver", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stdout, ended.stderr


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, f"not in a minute: {what}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Not gone, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def events(printed: str) -> dict[str, dict[str, Any]]:
    """The last event of each name, of `--log-format json`."""
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {one["event"]: one for one in found}
