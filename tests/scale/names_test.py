"""10,000 partitions: what making, starting, holding and moving them costs, and whether their data stays.

Prints a table of figures; they are measured, not judged. The exit code is 1 when data differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

STREAM = "s"
MIB = 1 << 20


class NamesTest:
    """rows: what was measured, and the figure as text."""

    def __init__(self, directory: Path, topics: int, partitions: int) -> None:
        self.server = ShardedServer(directory, cores=2, config="[net]\nmax_connections = 256\n")
        self._topics = [f"t{number}" for number in range(topics)]
        self._partitions = partitions
        self.rows: list[tuple[str, str]] = []

    def run(self) -> bool:
        """True: all data was there after every start."""
        self._timed("first start", self.server.serve)
        empty_bytes = self._disk_bytes()
        with self.server.connect(timeout_s=300) as connection:
            connection.create_stream(STREAM)
            self._timed("create all topics", lambda: self._create(connection))
            self._tell("disk of empty partitions", f"{(self._settled_disk_bytes() - empty_bytes) / MIB:.1f} MiB")
            self._tell_processes("after create")
            self._timed("one message to each of a tenth", lambda: self._fill(connection))
        self._tell_processes("after sends")
        intact = True
        for what, end, cores in (
            ("start after stop", self.server.stop, 2),
            ("start after kill", self.server.kill, 2),
            ("start with 3 cores after stop", self.server.stop, 3),
            ("start with 1 core after kill", self.server.kill, 1),
        ):
            end()
            self.server.cores = cores
            self._timed(what, self.server.serve)
            self._tell_processes(what)
            intact = self._is_intact() and intact
        self._timed("stop", self.server.stop)
        return intact

    # Steps

    def _create(self, connection: WireConnection) -> None:
        for topic in self._topics:
            connection.create_topic(STREAM, topic, self._partitions)

    def _used(self) -> Iterator[tuple[str, int]]:
        """Every tenth partition, from another one on in each topic, so that they are on all shards."""
        for number, topic in enumerate(self._topics):
            for partition in range(number % 10, self._partitions, 10):
                yield topic, partition

    def _fill(self, connection: WireConnection) -> None:
        for topic, partition in self._used():
            connection.send_payloads(topic, partition, content(topic, partition), stream=STREAM)

    def _is_intact(self) -> bool:
        """What was sent is there alone, and the neighbours are empty."""
        with self.server.connect(timeout_s=300) as connection:
            wrong = [
                (topic, partition)
                for topic, partition in self._used()
                if connection.read_all(topic, partition, stream=STREAM) != [content(topic, partition)]
                or connection.read_all(topic, (partition + 1) % self._partitions, stream=STREAM) != []
            ]
        if wrong:
            print(f"wrong data in {len(wrong)} partitions, such as {wrong[0]}")
        return not wrong

    # Figures

    def _timed(self, what: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        self._tell(what, f"{time.monotonic() - began:.2f} s")

    def _tell(self, what: str, figure: str) -> None:
        self.rows.append((what, figure))
        print(f"{what:42} {figure}", flush=True)

    def _tell_processes(self, when: str) -> None:
        """Resident memory and descriptors of the supervisor and of each shard."""
        processes = {"supervisor": self.server.pid}
        processes |= {f"shard {one['shard']}": one["pid"] for one in self.server.status()["shards"]}
        for name, pid in processes.items():
            process = psutil.Process(pid)
            figure = f"{process.memory_info().rss / MIB:.0f} MiB, {process.num_fds()} descriptors"
            self._tell(f"  {name}, {when}", figure)

    def _settled_disk_bytes(self) -> int:
        """Once the journals have grown with the partitions."""
        before, now = -1, self._disk_bytes()
        while before != now:
            time.sleep(1)
            before, now = now, self._disk_bytes()
        return now

    def _disk_bytes(self) -> int:
        """Allocated, as du counts them."""
        return sum(path.lstat().st_blocks * 512 for path in [self.server.data, *self.server.data.rglob("*")])


def content(topic: str, partition: int) -> bytes:
    return f"{topic}/{partition}".encode()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--topics", type=int, default=10)
    parser.add_argument("--partitions", type=int, default=1000, help="of each topic, at most 1000")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        test = NamesTest(Path(directory), arguments.topics, arguments.partitions)
        try:
            return 0 if test.run() else 1
        finally:
            test.server.kill()


if __name__ == "__main__":
    sys.exit(main())
