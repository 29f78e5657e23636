"""Producers with numbers, and consumers that read on from what they have committed, while partitions move."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field

from apache_iggy import Consumer, IggyClient, PollingStrategy, SendMessage

from tests.sdk_client import connect

STREAM, TOPIC = "moves", "test"
PARTITIONS = 4
READER = 42
BATCH = 100
SIZES = (10, 500, 20_000)
CLIENT_WAIT_S = 28.0
IDLE_S = 0.002
SETTLE_S = 3.0


@dataclass
class Partition:
    """acknowledged: numbers in the order of sending. received: (offset, payload) of every message that a poll gave.

    redelivered: messages that came once more behind a kill: an auto-commit is durable a journal write after the answer
    of its poll. settled: below it all was committed SETTLE_S before the last poll. polls: (time, messages had) of the
    others.
    """

    number: int
    attempts: int = 0
    acknowledged: list[int] = field(default_factory=list)
    received: list[tuple[int, bytes]] = field(default_factory=list)
    redelivered: int = 0
    may_rewind: bool = False
    polls: deque[tuple[float, int]] = field(default_factory=deque)
    settled: int = 0
    errors: list[str] = field(default_factory=list)

    async def produce(self, address: str, stop: asyncio.Event) -> None:
        client = await connect(address)
        while not stop.is_set():
            await asyncio.wait_for(self._send(client), CLIENT_WAIT_S)

    async def _send(self, client: IggyClient) -> None:
        count = random.choice((1, 1, 7))
        numbers = range(self.attempts, self.attempts + count)
        self.attempts += count
        messages = [SendMessage(payload_of(number)) for number in numbers]
        await client.send_messages(STREAM, TOPIC, self.number, messages)
        self.acknowledged += numbers

    async def consume(self, address: str, stop: asyncio.Event) -> None:
        """Until all that was acknowledged has been read, once stop is set."""
        client = await connect(address)
        while not stop.is_set() or len(self.received) < len(self.acknowledged):
            was_last = stop.is_set()
            if await asyncio.wait_for(self._read(client), CLIENT_WAIT_S) == 0:
                if was_last:  # it began after the last acknowledgement: what is missing is lost
                    return
                await asyncio.sleep(IDLE_S)

    async def _read(self, client: IggyClient) -> int:
        found = await client.poll_messages(
            STREAM, TOPIC, consumer=Consumer.Single(READER), polling_strategy=PollingStrategy.Next(), count=BATCH,
            auto_commit=True, partition_id=self.number,
        )  # fmt: skip
        if found and self.may_rewind:
            self._rewind(found[0].offset())
        self.received += [(one.offset(), bytes(one.payload())) for one in found]
        self._note_poll()
        return len(found)

    def _note_poll(self) -> None:
        now = time.monotonic()
        self.polls.append((now, len(self.received)))
        while self.polls[0][0] < now - SETTLE_S:
            self.settled = self.polls.popleft()[1]

    def _rewind(self, offset: int) -> None:
        """The first poll behind a kill: what comes again replaces what came before, and is judged in its place."""
        self.may_rewind = False
        if offset < self.settled:
            self.errors.append(f"reads on from {offset}, though all below {self.settled} was committed long before")
        self.redelivered += max(0, len(self.received) - offset)
        del self.received[offset:]


def payload_of(number: int) -> str:
    """Whose content follows from its number."""
    return f"{number} ".ljust(SIZES[number % len(SIZES)], chr(97 + number % 26))


class Load:
    """One producer and one consumer a partition."""

    def __init__(self) -> None:
        self.partitions = [Partition(number) for number in range(PARTITIONS)]
        self._stop_producing, self._stop_consuming = asyncio.Event(), asyncio.Event()
        self._producers: list[asyncio.Task[None]] = []
        self._consumers: list[asyncio.Task[None]] = []

    def start(self, address: str) -> None:
        self._stop_producing, self._stop_consuming = asyncio.Event(), asyncio.Event()
        self._producers = [asyncio.create_task(one.produce(address, self._stop_producing)) for one in self.partitions]
        self._consumers = [asyncio.create_task(one.consume(address, self._stop_consuming)) for one in self.partitions]

    async def stop(self) -> None:
        """Producers first; consumers when they have everything. No request is in flight afterwards."""
        for event, tasks in ((self._stop_producing, self._producers), (self._stop_consuming, self._consumers)):
            event.set()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            for partition, outcome in zip(self.partitions, ended, strict=True):
                if isinstance(outcome, BaseException):
                    partition.errors.append(repr(outcome))

    @property
    def sent(self) -> int:
        return sum(len(one.acknowledged) for one in self.partitions)

    def expect_rewind(self) -> None:
        """The server was killed."""
        for one in self.partitions:
            one.may_rewind = True

    @property
    def redelivered(self) -> int:
        return sum(one.redelivered for one in self.partitions)

    @property
    def received(self) -> int:
        return sum(len(one.received) for one in self.partitions)

    @property
    def errors(self) -> list[str]:
        return [f"partition {one.number}: {error}" for one in self.partitions for error in one.errors]


async def create(address: str) -> None:
    client = await connect(address)
    await client.create_stream(STREAM)
    await client.create_topic(STREAM, TOPIC, partitions_count=PARTITIONS)
