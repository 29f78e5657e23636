"""kill -9 of single shards and of the whole server, in turn, under load with the real SDK; then all is read back.

Between two kills of the whole, each round kills one shard, any of them. Connections that have nothing to do with it
must not see an error. Hand-over is on in every other life of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.crash.judge import judge, read_all
from tests.crash.load import PARTITIONS, STREAM, TOPIC, Load, Producer, create
from tests.sharded_server import ShardedServer

# Kills of single shards between two of the whole.
SINGLE_KILLS = 2
HANDOVER_REQUESTS = 4


@dataclass
class Kills:
    single: int = 0
    whole: int = 0

    @property
    def next_is_whole(self) -> bool:
        return self.single >= SINGLE_KILLS * (self.whole + 1)


class CrashTest:
    """One server, one load, many kills."""

    def __init__(self, directory: Path, cores: int) -> None:
        self.server = ShardedServer(directory, cores=cores)
        self.load, self.kills = Load(), Kills()
        self._hands_over = False
        self._set_handover()

    def _set_handover(self) -> None:
        self.server.config = f"[net]\nhandover_requests = {HANDOVER_REQUESTS * self._hands_over}\n"

    def run(self, seconds: float) -> bool:
        """True: nothing was lost or doubled, and nobody saw an error who should not have."""
        end = time.monotonic() + seconds
        self.server.serve()
        asyncio.run(create(self.server.address))
        while time.monotonic() < end:
            asyncio.run(self._round())
        verdict = judge(self.load, asyncio.run(read_all(self.server.address)))
        self.server.stop()
        print(
            f"kills {self.kills.single} single / {self.kills.whole} whole, attempts {self.load.attempts}, "
            f"acknowledged {self.load.acknowledged}, lost {verdict.lost}, doubled {verdict.doubled}, "
            f"producers out of order {verdict.disordered}, errors on other shards {len(self.load.errors)}, "
            f"slowest answer {self.load.slowest_s:.1f} s"
        )
        for error in self.load.errors[:10]:
            print(f"  {error}")
        return verdict.is_good and not self.load.errors and self.load.acknowledged > 0

    async def _round(self) -> None:
        server, cores = self.server, self.server.cores
        owners = [server.shard_of(STREAM, TOPIC, partition) for partition in range(PARTITIONS)]
        producers = await self.load.connect(server.address, owners, cores, hands_over=self._hands_over)
        stop = asyncio.Event()
        tasks = [asyncio.create_task(one.run(self.load, stop)) for one in producers]
        await asyncio.sleep(random.uniform(0.2, 1.0))
        if self.kills.next_is_whole:
            await self._kill_whole(tasks)
        else:
            await self._kill_shard(producers, random.randrange(cores))
            stop.set()
            await asyncio.gather(*tasks)

    async def _kill_whole(self, tasks: list[asyncio.Task[None]]) -> None:
        self.kills.whole += 1
        await asyncio.to_thread(self.server.kill)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._hands_over = not self._hands_over
        self._set_handover()
        await asyncio.to_thread(self.server.serve)

    async def _kill_shard(self, producers: list[Producer], victim: int) -> None:
        self.kills.single += 1
        survivors = [one for one in producers if victim not in one.shards]
        pid = await asyncio.to_thread(self.server.kill_shard, victim)
        await asyncio.to_thread(self.server.wait_ready, other_than=pid)
        await self.load.wait_for_more(survivors)
        self.load.note_errors(survivors)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cores", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        test = CrashTest(Path(directory), arguments.cores)
        try:
            return 0 if test.run(arguments.seconds) else 1
        except AssertionError:
            print(test.server.log()[-4000:], file=sys.stderr)
            raise
        finally:
            test.server.kill()


if __name__ == "__main__":
    sys.exit(main())
