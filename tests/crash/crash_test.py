"""kill -9 of the shard and of the server, again and again, under load with the real SDK; then everything is read back.

Each attempt to send carries its own number. *Lost*: acknowledged, not found. *Doubled*: one attempt found twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from apache_iggy import Consumer, IggyClient, PollingStrategy, SendMessage

from tests.server_process import PASSWORD, ServerProcess

PARTITIONS = 4
CLIENT_WAIT_S = 3.0


class Load:
    """Attempts and acknowledgements of all rounds."""

    def __init__(self) -> None:
        self.attempts = 0
        self.acknowledged: list[list[int]] = [[] for _ in range(PARTITIONS)]

    async def produce(self, address: str, partition: int) -> None:
        """Send until the server is gone. An attempt without an answer may be there or not."""
        client = await connect(address)
        while True:
            self.attempts += 1
            number = self.attempts
            payload = f"{number} " + "x" * random.choice((10, 500, 5_000, 300_000))
            await asyncio.wait_for(
                client.send_messages("crash", "test", partition, [SendMessage(payload)]), CLIENT_WAIT_S
            )
            self.acknowledged[partition].append(number)


async def connect(address: str) -> IggyClient:
    client = IggyClient.from_connection_string(f"iggy://iggy:{PASSWORD}@{address}?reconnection_retries=0")
    await client.connect()
    return client


async def load_and_kill(load: Load, server: ServerProcess, ready: dict, seconds: float, victim: int) -> None:
    tasks = [asyncio.create_task(load.produce(ready["tcp"], number)) for number in range(PARTITIONS)]
    await asyncio.sleep(seconds)
    os.kill(victim, signal.SIGKILL)
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def read_all(address: str, partition: int) -> list[int]:
    client = await connect(address)
    found: list[int] = []
    offset = 0
    while True:
        messages = await client.poll_messages(
            "crash", "test", consumer=Consumer.Single(1), polling_strategy=PollingStrategy.Offset(offset), count=500,
            auto_commit=False, partition_id=partition,
        )  # fmt: skip
        if not messages:
            return found
        if messages[0].offset() != offset:
            raise SystemExit(f"partition {partition}: offset {messages[0].offset()} where {offset} was due")
        found += [int(message.payload().split(b" ")[0]) for message in messages]
        offset += len(messages)


async def create(address: str) -> None:
    client = await connect(address)
    await client.create_stream("crash")
    await client.create_topic("crash", "test", partitions_count=PARTITIONS)


def judge(load: Load, found: list[list[int]]) -> tuple[int, int, int]:
    """(lost, doubled, out of order)."""
    lost = doubled = disorder = 0
    for acknowledged, there in zip(load.acknowledged, found, strict=True):
        lost += len(set(acknowledged) - set(there))
        doubled += len(there) - len(set(there))
        known = set(acknowledged)
        disorder += [number for number in there if number in known] != acknowledged
    return lost, doubled, disorder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    seconds, seed = parser.parse_args().seconds, parser.parse_args().seed
    random.seed(seed)
    with tempfile.TemporaryDirectory() as directory:
        server = ServerProcess(Path(directory) / "data")
        try:
            return run(server, seconds)
        finally:
            server.kill()


def run(server: ServerProcess, seconds: float) -> int:
    load, kills, end = Load(), 0, time.monotonic() + seconds
    server.start()
    ready = server.wait_ready()
    asyncio.run(create(ready["tcp"]))
    while time.monotonic() < end:
        whole = kills % 2 == 1
        victim = ready["supervisor_pid"] if whole else ready["shards"][0]["pid"]
        asyncio.run(load_and_kill(load, server, ready, random.uniform(0.2, 1.0), victim))
        kills += 1
        if whole:
            server.wait()
            server.start()
            ready = server.wait_ready()
        else:
            ready = server.wait_ready(other_than=victim)
    found = [asyncio.run(read_all(ready["tcp"], number)) for number in range(PARTITIONS)]
    with contextlib.suppress(AssertionError):
        server.stop()
    lost, doubled, disorder = judge(load, found)
    acknowledged = sum(map(len, load.acknowledged))
    print(
        f"kills {kills}, attempts {load.attempts}, acknowledged {acknowledged}, lost {lost}, doubled {doubled}, "
        f"partitions out of order {disorder}"
    )
    return 1 if lost or doubled or disorder or not acknowledged else 0


if __name__ == "__main__":
    sys.exit(main())
