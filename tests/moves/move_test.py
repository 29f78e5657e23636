"""Partitions move back and forth between shards under load of the real SDK, and over restarts with other cores.

Producers number their messages, consumers read on with auto-commit; order and content of every message are checked.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shardserver.errors import ConfigError
from tests.moves.judge import Verdict, judge
from tests.moves.load import PARTITIONS, STREAM, TOPIC, Load, create
from tests.sharded_server import ShardedServer

CORES = (3, 2, 4, 1)
MOVES_A_LIFE = 30
REBALANCE_EVERY = 10


class MoveTest:
    """refused: moves that the server said no to, with its sentence; they must leave everything as it was."""

    def __init__(self, directory: Path) -> None:
        self.server = ShardedServer(directory, cores=CORES[0])
        self.load: Load
        self.moves, self.rehomed, self.refused = 0, 0, list[str]()

    async def run(self, seconds: float) -> bool:
        """True: every message came once, in order and as it was sent, and no client saw an error."""
        end = time.monotonic() + seconds
        self.load = Load()
        await asyncio.to_thread(self.server.serve)
        await create(self.server.address)
        life = 0
        while time.monotonic() < end or life < 2:
            await self._live(min(end, time.monotonic() + seconds / len(CORES)))
            life += 1
            await self._restart(CORES[life % len(CORES)])
        return self._tell(*await judge(self.load, self.server.address))

    def _tell(self, received: Verdict, stored: Verdict) -> bool:
        load = self.load
        print(
            f"moves {self.moves} running / {self.rehomed} at restarts, refused {len(self.refused)}, "
            f"sent {load.sent}, received {load.received} ({received}, again after a kill {load.redelivered}), "
            f"stored: {stored}, client errors {len(load.errors)}"
        )
        for line in [*load.errors, *self.refused][:10]:
            print(f"  {line}")
        done = load.sent > 0 and self.moves > 0
        return received.is_good and stored.is_good and not load.errors and not self.refused and done

    async def _live(self, until: float) -> None:
        """One process of the server: moves, one after another, between the first message and the last."""
        self.load.start(self.server.address)
        step = 0
        while time.monotonic() < until or step < MOVES_A_LIFE:
            step += 1
            await (self._rebalance() if step % REBALANCE_EVERY == 0 else self._move())
            await asyncio.sleep(random.uniform(0, 0.05))
            if self.server.cores == 1 and time.monotonic() > until:
                break
        await self.load.stop()

    async def _move(self) -> None:
        target = random.randrange(self.server.cores)
        where = {"stream": STREAM, "topic": TOPIC, "partition": random.randrange(PARTITIONS)}
        await self._ask("move-partition", **where, to_shard=target)

    async def _rebalance(self) -> None:
        await self._ask("rebalance", by=random.choice(("count", "load")), dry_run=False)

    async def _ask(self, command: str, **arguments: Any) -> None:
        try:
            answer = await asyncio.to_thread(self.server.ask, command, **arguments)
        except ConfigError as error:
            self.refused.append(f"{command} {arguments}: {error}")
        else:
            self.moves += int(answer["moved"])

    async def _restart(self, cores: int) -> None:
        """An orderly stop or a kill; partitions of shards that are gone move at the start."""
        before = {row["uid"]: row["shard"] for row in self.server.ask("placement")["partitions"]}
        if random.random() < 0.5:
            await asyncio.to_thread(self.server.kill)
            self.load.expect_rewind()
        else:
            await asyncio.to_thread(self.server.stop)
        self.server.cores = cores
        await asyncio.to_thread(self.server.serve)
        after = {row["uid"]: row["shard"] for row in self.server.ask("placement")["partitions"]}
        self.rehomed += sum(before[uid] != shard for uid, shard in after.items())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        test = MoveTest(Path(directory))
        try:
            return 0 if asyncio.run(test.run(arguments.seconds)) else 1
        except AssertionError:
            print(test.server.log()[-4000:], file=sys.stderr)
            raise
        finally:
            test.server.kill()


if __name__ == "__main__":
    sys.exit(main())
