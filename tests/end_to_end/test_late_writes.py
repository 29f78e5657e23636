"""Storage rule 15 with real processes: writes of a killed shard are under way for longer than any watchdog waits."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardserver.protocol.table import Command
from tests.powercut.fuse import MountError
from tests.powercut.fuse_image import FuseImage
from tests.sharded_server import ShardedServer, rule
from tests.supervisor.servers import is_running, wait_until
from tests.wire_connection import send_request

LIMIT_S = 4  # a process has to be spawned within it
HELD_S = 3 * LIMIT_S
CONFIG = (
    f"[server]\nstall_limit_s = {LIMIT_S}\nrecovery_stall_limit_s = {LIMIT_S}\n"
    "[journal]\nfile_bytes = 2097152\nfiles = 4\n[storage]\nlow_watermark_bytes = 0\n" + rule("s", "t", 1)
)
PAYLOADS = [b"%d" % number for number in range(10)]
VICTIM = 1


class LateWrite:
    """As far as locks go, a write of a dead process: who waits for the shard's lock while it lives has it next."""

    def __init__(self, path: Path) -> None:
        self.has_lock, self._may_end = threading.Event(), threading.Event()
        self._path = path
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def _hold(self) -> None:
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.has_lock.set()
            self._may_end.wait()

    def end(self) -> None:
        self._may_end.set()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=2, config=CONFIG)
    yield made
    made.kill()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[FuseImage]:
    made = FuseImage(tmp_path / "mounted")
    made.create()
    try:
        try:
            made.mount()
        except MountError as error:
            pytest.skip(f"no FUSE mount: {error}")
        yield made
    finally:
        made.unmount()


def begin(server: ShardedServer) -> None:
    with server.serve().connect() as connection:
        connection.create_stream("s")
        connection.create_topic("s", "t", 1)
        for payload in PAYLOADS:
            connection.send_payloads("t", 0, payload)


def recovering_pid(server: ShardedServer, former: int) -> int:
    """Of the next process, once it says that it waits for a journal file."""

    def waits() -> bool:
        recovery = server.status().get("recovery")
        return recovery is not None and any(path.endswith(".journal") for path in recovery["waits_for"])

    wait_until(waits, "a shard that says what it waits for")
    pid = server.shard_pid(VICTIM)
    assert pid not in (0, former)
    return pid


def check_waits(server: ShardedServer, pid: int) -> None:
    """For three limits, and nobody takes the wait for a hang."""
    end = time.monotonic() + HELD_S
    while time.monotonic() < end:
        shard = server.status()["shards"][VICTIM]
        assert (shard["pid"], shard["state"], shard["restarts"]) == (pid, "recovering", 1)
        time.sleep(0.1)
    assert "waits_for_lock" in server.log() and "shard_stalled" not in server.log()
    told = server.command("status")
    assert "waits for the lock of" in told.stdout and ".journal" in told.stdout


def stored(server: ShardedServer) -> list[bytes]:
    with server.connect() as connection:
        return connection.read_all("t", 0)


def test_a_lock_that_is_held_long_costs_one_restart_and_no_other(server: ShardedServer) -> None:
    begin(server)
    late = LateWrite(next((server.data / "shards" / str(VICTIM) / "journal").glob("*.journal")))
    try:
        former = server.kill_shard(VICTIM)
        wait_until(late.has_lock.is_set, "the lock")
        check_waits(server, recovering_pid(server, former))
    finally:
        late.end()
    server.wait_ready(other_than=former)
    assert stored(server) == PAYLOADS
    assert [shard["restarts"] for shard in server.status()["shards"]] == [0, 1]


def test_writes_that_land_after_the_next_process_has_started_are_recovered_by_it(
    tmp_path: Path, image: FuseImage
) -> None:
    server = ShardedServer(tmp_path, cores=2, config=CONFIG)
    server.data = image.directory / "data"
    try:
        begin(server)
        connection = server.connect()
        image.hold_next_write()
        connection.write(Command.SEND_MESSAGES, send_request("t", 0, b"late"))
        wait_until(image.holds_a_write, "a write of the journal")
        former = server.kill_shard(VICTIM)
        wait_until(lambda: not is_running(former), "the end of a process whose write is under way")
        check_waits(server, recovering_pid(server, former))
        image.land()
        server.wait_ready(other_than=former)
        assert stored(server) == [*PAYLOADS, b"late"]  # it is whole, and nothing of it came after recovery had read
        assert [shard["restarts"] for shard in server.status()["shards"]] == [0, 1]
        connection.close()
    finally:
        image.land()
        server.kill()
