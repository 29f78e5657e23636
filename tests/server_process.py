"""One server of ours as a child process: port chosen by the kernel, ended by its own process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PASSWORD = "secret"


class ServerProcess:
    """Start, wait for ready.json, stop or kill."""

    def __init__(self, data: Path, *flags: str, module: str = "shardserver") -> None:
        self.data = data
        self._module = module
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, port: str = "0") -> None:
        command = [
            sys.executable,
            "-m",
            self._module,
            "--data",
            str(self.data),
            "--port",
            port,
            "--log-level",
            "warning",
        ]
        environment = os.environ | {"SHARDSERVER_ROOT_PASSWORD": PASSWORD}
        (self.data / "run" / "ready.json").unlink(missing_ok=True)
        self._process = subprocess.Popen([*command, *self._flags], env=environment, stderr=subprocess.PIPE)

    def wait_ready(self, timeout_s: float = 60.0, *, other_than: int = 0) -> dict[str, object]:
        """The content of ready.json, of a shard that is not process `other_than`."""
        end = time.monotonic() + timeout_s
        path = self.data / "run" / "ready.json"
        while time.monotonic() < end:
            assert self._process is not None
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise AssertionError(f"the server ended: {self._process.stderr.read().decode()}")
            if path.exists():
                content = json.loads(path.read_text())
                if content["shards"][0]["pid"] != other_than:
                    return content
            time.sleep(0.02)
        raise AssertionError("no ready.json in time")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> tuple[int, str]:
        """Exit code and what was printed on standard error."""
        assert self._process is not None
        _, printed = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, printed.decode()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()[0]

    def kill(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
            self.wait()
        elif self._process.stderr is not None:  # it ended by itself, and nobody has read why
            self._process.stderr.close()
