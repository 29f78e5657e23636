"""make chaos: a server under load from the SDK and from our compiled client, and one blow after another.

What was acknowledged is judged whenever there is much of it, and at the end; then the topics are made anew. Memory and
descriptors of the shards are looked at after each blow, with no connection but those of the load: the last quarter of
the run must not hold more than the second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from apache_iggy import Consumer, PollingStrategy

from tests.chaos.blows import CONFIG, Blows
from tests.chaos.bulk import Bulk
from tests.chaos.crowd import Crowd
from tests.chaos.stepped_clock import SteppedClock
from tests.crash import load as sdk_load
from tests.crash.judge import judge, read_all
from tests.crash.load import PARTITIONS, Load
from tests.powercut.image import Image, ImageError
from tests.sdk_client import connect
from tests.sharded_server import ShardedServer

CORES = 2
IMAGE_BYTES = 2 << 30
# So much on the file system ends an epoch: topics are judged, deleted and made anew.
EPOCH_BYTES = 500 << 20
BEFORE_S, BEHIND_S = 0.3, 0.3
SEND_LIMIT_S = 28.0
MOST_CONNECTIONS = 10_000
# A run of so many seconds has at least one blow of each kind, and is judged by the growth of its memory.
ALL_BLOWS_S = 100.0
GROWTH_BYTES, GROWTH_DESCRIPTORS = 48 << 20, 24


@dataclass
class Totals:
    """Messages that the SDK's producers, and the compiled client, had acknowledged; and what became of them."""

    by_sdk: int = 0
    by_bulk: int = 0
    lost: int = 0
    doubled: int = 0
    faults: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


def grown(values: list[int]) -> int:
    """The median of the last quarter less that of the second."""
    quarter = len(values) // 4
    if quarter == 0:
        return 0
    return int(statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter]))


class ChaosTest:
    def __init__(self, directory: Path, mounted: Path | None, connections: int) -> None:
        self.counts: Counter[str] = Counter()
        clock = SteppedClock(directory)
        limit = connections + 1500
        low = ("sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh")
        config = CONFIG.format(connections=max(64, connections // CORES))
        self.server = ShardedServer(directory / "server", cores=CORES, config=config, wrapper=(*low, *clock.wrapper))
        if mounted is not None:
            self.server.data = mounted / "data"
        self._where = mounted or directory
        self._connections = connections
        self._blows = Blows(self.server, self.counts, clock, mounted, CORES)
        self._load, self._bulk, self.totals, self._free_bytes = Load(), Bulk(), Totals(), 0

    async def run(self, seconds: float) -> bool:
        await asyncio.to_thread(self.server.serve)
        self._free_bytes = self._free()
        await self._begin_epoch()
        end = time.monotonic() + seconds
        kinds: list[str] = []
        while time.monotonic() < end:
            kinds = kinds or list(self._kinds())
            await self._round(kinds.pop())
            self._look()
            if self._free_bytes - self._free() > EPOCH_BYTES:
                await self._end_epoch()
                await self._begin_epoch()
        await self._end_epoch()
        missing = [kind for kind in self._blows.kinds if not self.counts[kind]]
        if missing and seconds >= ALL_BLOWS_S:
            self.totals.faults.append(f"there was no time for: {', '.join(missing)}")
        return self._tell(is_long=seconds >= ALL_BLOWS_S)

    def _kinds(self) -> Iterator[str]:
        """Each kind once, in any order."""
        yield from random.sample(sorted(self._blows.kinds), len(self._blows.kinds))

    def _free(self) -> int:
        figures = os.statvfs(self._where)
        return figures.f_bavail * figures.f_frsize

    async def _begin_epoch(self) -> None:
        self._load, self._bulk = Load(), Bulk()
        await sdk_load.create(self.server.address)
        await asyncio.to_thread(self._bulk.create, self.server.address)

    async def _round(self, kind: str) -> None:
        crowd = Crowd(self.counts, self._connections if random.random() < 0.3 else 20)
        producers = await self._load.connect(self.server.address, [0] * PARTITIONS, CORES, hands_over=True)
        stop = asyncio.Event()
        tasks = [asyncio.create_task(one.run(self._load, stop)) for one in producers]
        bulk = asyncio.create_task(self._bulk.run(self.server.address, BEFORE_S + BEHIND_S + 0.5))
        await asyncio.to_thread(crowd.open, self.server.address)
        try:
            await asyncio.sleep(random.uniform(0, BEFORE_S))
            await asyncio.to_thread(self._blows.strike, kind)
            await asyncio.sleep(BEHIND_S)
        finally:
            stop.set()
            await asyncio.to_thread(crowd.close)
            _, pending = await asyncio.wait([*tasks, bulk], timeout=SEND_LIMIT_S)
            for one in pending:
                self.counts["answers never given"] += 1
                one.cancel()
            await asyncio.gather(*tasks, bulk, return_exceptions=True)

    def _look(self) -> None:
        """At the processes that serve now."""
        ready = self.server.wait_ready()
        with contextlib.suppress(psutil.NoSuchProcess):
            shards = [psutil.Process(shard["pid"]) for shard in ready["shards"]]
            self.totals.resident.append(sum(one.memory_info().rss for one in shards))
            self.totals.descriptors.append(sum(one.num_fds() for one in shards))

    async def _end_epoch(self) -> None:
        address, totals = self.server.address, self.totals
        verdict = judge(self._load, await read_all(address))
        lost, faults = await asyncio.to_thread(self._bulk.judge, address)
        totals.by_sdk += self._load.acknowledged
        totals.by_bulk += self._bulk.acknowledged
        totals.lost += verdict.lost + lost
        totals.doubled += verdict.doubled
        totals.faults += faults + [f"producers out of order {verdict.disordered}"] * bool(verdict.disordered)
        totals.faults += await self._timestamps_back(address)
        self.counts["epochs"] += 1
        client = await connect(address)
        await client.delete_stream(sdk_load.STREAM)
        await asyncio.to_thread(self._bulk.delete, address)

    async def _timestamps_back(self, address: str) -> list[str]:
        """Partitions whose time goes back: the clock's steps must not be seen (decisions.md, storage rule 19)."""
        return [
            f"partition {partition}: a timestamp goes back"
            for partition in range(PARTITIONS)
            if (found := [one async for one in timestamps(address, partition)]) != sorted(found)
        ]

    def _tell(self, *, is_long: bool) -> bool:
        """Whether all was as it must be. is_long: caches had time to fill, so memory must be flat."""
        totals = self.totals
        for kind, count in sorted(self.counts.items()):
            print(f"{count:7}  {kind}")
        memory, descriptors = grown(totals.resident), grown(totals.descriptors)
        print(
            f"acknowledged {totals.by_sdk} (SDK) + {totals.by_bulk} (compiled client), lost {totals.lost}, "
            f"doubled {totals.doubled}, faults {len(totals.faults)}"
        )
        print(
            f"memory of the shards {statistics.median(totals.resident) / 1e6:.0f} MB, grown by {memory / 1e6:.1f} MB; "
            f"descriptors {statistics.median(totals.descriptors):.0f}, grown by {descriptors}"
        )
        for fault in totals.faults[:10]:
            print(f"  {fault}")
        flat = not is_long or (memory <= GROWTH_BYTES and descriptors <= GROWTH_DESCRIPTORS)
        named = "Traceback" not in self.server.log()
        if not named:
            print("  an error that nobody named: " + self.server.log().partition("Traceback")[2][-800:])
        good = not (totals.lost or totals.doubled or totals.faults or self.counts["answers never given"])
        return good and flat and named and min(totals.by_sdk, totals.by_bulk) > 0


async def timestamps(address: str, partition: int) -> AsyncIterator[int]:
    """Microseconds, of all messages in order."""
    client, due = await connect(address), 0
    while True:
        messages = await client.poll_messages(
            sdk_load.STREAM, sdk_load.TOPIC, consumer=Consumer.Single(1), polling_strategy=PollingStrategy.Offset(due),
            count=500, auto_commit=False, partition_id=partition,
        )  # fmt: skip
        if not messages:
            return
        due += len(messages)
        for one in messages:
            yield one.timestamp()


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path | None]:
    """An ext4 image; None where loop mounts are not allowed."""
    image = Image(directory / "disk.img", directory / "mounted", IMAGE_BYTES)
    try:
        image.create()
        image.mount()
    except (ImageError, FileNotFoundError) as error:
        print(f"no full disk: {error}")
        yield None
        return
    try:
        yield image.directory
    finally:
        image.unmount()


def own_descriptors() -> int:
    """As many as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connections", type=int, default=0, help="silent ones; 0: 30 for each second, at most 10,000")
    arguments = parser.parse_args()
    seed = arguments.seed or int(time.time())
    random.seed(seed)
    print(f"seed {seed}")
    wanted = arguments.connections or min(MOST_CONNECTIONS, int(30 * arguments.seconds))
    connections = min(wanted, own_descriptors() - 1000)
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name)) as mounted:
        test = ChaosTest(Path(name), mounted, connections)
        try:
            return 0 if asyncio.run(test.run(arguments.seconds)) else 1
        except (AssertionError, RuntimeError):
            print(test.server.log()[-4000:], file=sys.stderr)
            raise
        finally:
            test.server.kill()


if __name__ == "__main__":
    sys.exit(main())
