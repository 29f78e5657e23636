"""Producers on connections of all shards to all partitions, each attempt with its own number."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field

from apache_iggy import IggyClient, SendMessage

from tests.sdk_client import connect, shard_of

STREAM, TOPIC = "crash", "test"
PARTITIONS = 4
SIZES = (10, 500, 5_000, 300_000)
# Longer than the server keeps a client waiting for a shard that restarts.
CLIENT_WAIT_S = 28.0
LOOK_S = 0.01


@dataclass
class Producer:
    """One connection, one partition. shards: those that its requests pass; the death of another must not be seen."""

    client: IggyClient
    partition: int
    shards: frozenset[int]
    acknowledged: list[int] = field(default_factory=list)
    error: str = ""

    async def run(self, load: Load, stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                await self._send(load)
        except Exception as error:  # the SDK raises RuntimeError for all that can happen to a request
            self.error = repr(error)

    async def _send(self, load: Load) -> None:
        number = next(load.numbers)
        load.attempts += 1
        message = SendMessage(f"{number} " + "x" * random.choice(SIZES))
        sent_at = time.monotonic()
        await asyncio.wait_for(self.client.send_messages(STREAM, TOPIC, self.partition, [message]), CLIENT_WAIT_S)
        self.acknowledged.append(number)
        load.slowest_s = max(load.slowest_s, time.monotonic() - sent_at)


@dataclass
class Load:
    """Attempts, acknowledgements and errors of all rounds. slowest_s: the longest wait for an acknowledgement."""

    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    producers: list[Producer] = field(default_factory=list)
    attempts: int = 0
    slowest_s: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        return sum(len(one.acknowledged) for one in self.producers)

    async def connect(self, address: str, owners: list[int], shards: int, *, hands_over: bool) -> list[Producer]:
        """One producer for each shard and partition. owners: the shard of each partition.

        hands_over: a connection moves to the shard of its partition, and how soon it does is not known here.
        """
        clients = [await connect(address) for _ in range(shards * PARTITIONS)]
        by_shard: dict[int, list[IggyClient]] = {}
        for client in clients:
            by_shard.setdefault(await shard_of(client), []).append(client)
        made = [
            Producer(client, number % PARTITIONS, frozenset({shard, *owners[number % PARTITIONS :][: int(hands_over)]}))
            for shard, some in by_shard.items()
            for number, client in enumerate(some)
        ]
        self.producers += made
        return made

    async def wait_for_more(self, producers: list[Producer]) -> None:
        """Until each has been acknowledged once more, or has met an error."""
        goals = [len(one.acknowledged) + 1 for one in producers]
        end = time.monotonic() + CLIENT_WAIT_S + 5
        while any(not one.error and len(one.acknowledged) < goal for one, goal in zip(producers, goals, strict=True)):
            assert time.monotonic() < end, "a send is neither answered nor refused"
            await asyncio.sleep(LOOK_S)

    def note_errors(self, producers: list[Producer]) -> None:
        """Of connections that had nothing to do with the shard that was killed."""
        self.errors += [f"partition {one.partition}: {one.error}" for one in producers if one.error]


async def create(address: str) -> None:
    client = await connect(address)
    await client.create_stream(STREAM)
    await client.create_topic(STREAM, TOPIC, partitions_count=PARTITIONS)
