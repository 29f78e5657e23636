"""What happens to the server, one kind at a time. Each returns when the server serves again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.chaos.stepped_clock import SteppedClock
from tests.sharded_server import ShardedServer
from tests.supervisor.servers import children, is_running, wait_until

# Of the configuration below.
STALL_LIMIT_S = 1.5
FULL_S = 0.7
CONFIG = f"""
[server]
stall_limit_s = {STALL_LIMIT_S}
[net]
max_connections = {{connections}}
in_flight_bytes_per_connection = 1048576
in_flight_bytes_per_shard = 16777216
first_frame_timeout_s = 30
[journal]
file_bytes = 4194304
files = 4
[storage]
low_watermark_bytes = 0
"""


class Blows:
    """mounted: a file system of its own that may be filled, or None."""

    def __init__(
        self, server: ShardedServer, counts: Counter[str], clock: SteppedClock, mounted: Path | None, cores: int
    ) -> None:
        self._server, self._counts, self._clock, self._mounted, self._cores = server, counts, clock, mounted, cores
        self.kinds: dict[str, Callable[[], None]] = {
            "kill -9 of a shard": self.kill_shard,
            "kill -9 of the supervisor": self.kill_supervisor,
            "kill -9 of everything": self.kill_all,
            "SIGSTOP of a shard, short": self.pause_shard,
            "SIGSTOP of a shard, past its limit": self.stall_shard,
            "SIGSTOP of the supervisor": self.pause_supervisor,
            "SIGSTOP of everything": self.pause_all,
            "clock steps": self.step_clock,
        }
        if mounted is not None:
            self.kinds["full disk"] = self.fill_disk

    def strike(self, kind: str) -> None:
        self._counts[kind] += 1
        self.kinds[kind]()

    def _pids(self) -> list[int]:
        return [self._server.pid, *children(self._server.pid)]

    def kill_shard(self) -> None:
        pid = self._server.kill_shard(random.randrange(self._cores))
        self._server.wait_ready(other_than=pid)

    def kill_supervisor(self) -> None:
        self._server.kill()
        self._server.serve()

    def kill_all(self) -> None:
        pids = self._pids()
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.kill()
        wait_until(lambda: not any(map(is_running, pids)), "all are gone")
        self._server.serve()

    def _pause(self, pids: list[int], seconds: float) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def pause_shard(self) -> None:
        self._pause([self._server.shard_pid(random.randrange(self._cores))], STALL_LIMIT_S / 3)

    def stall_shard(self) -> None:
        """The supervisor kills it and starts another."""
        pid = self._server.kill_shard(random.randrange(self._cores), signal.SIGSTOP)
        self._server.wait_ready(other_than=pid)

    def pause_supervisor(self) -> None:
        self._pause([self._server.pid], STALL_LIMIT_S * 1.2)
        self._server.wait_ready()

    def pause_all(self) -> None:
        self._pause(self._pids(), STALL_LIMIT_S * 1.2)
        self._server.wait_ready()

    def step_clock(self) -> None:
        self._clock.step(random.choice((-3600, -7, -1, 1, 60, 86_400)))

    def fill_disk(self) -> None:
        assert self._mounted is not None
        ballast = self._mounted / "somebody's file"
        try:
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                figures = os.statvfs(self._mounted)
                os.posix_fallocate(file.fileno(), 0, max(4096, figures.f_bavail * figures.f_frsize - (1 << 20)))
                while True:
                    file.write(bytes(65536))
                    file.flush()
            time.sleep(FULL_S)
        finally:
            ballast.unlink()
        self._server.wait_ready()
