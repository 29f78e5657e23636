"""What one load does: its shape, its connections, how they are shared out to processes."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardserver.bench.load import MOST_NS
from shardserver.client.batch import encode_batch

BATCH_HEADER_BYTES, MESSAGE_HEADER_BYTES = 256, 48
FRAME_HEADER_BYTES = 256
SEND_REPLY_BYTES = FRAME_HEADER_BYTES + 24
POLL_REPLY_HEAD_BYTES = FRAME_HEADER_BYTES + 16
USERNAME, STREAM, TOPIC = "iggy", "shardserver-bench", "load"
# Batches that a load process chooses from: enough for sizes to mix, few enough to stay in its cache or its memory.
POOL_BATCHES, POOL_BYTES = 64, 32 << 20
# An open loop works off what it could not begin in time for so long.
DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Messages and batches. Payload bytes of a message are drawn evenly from least_bytes..most_bytes."""

    messages_per_batch: int
    least_bytes: int
    most_bytes: int

    @classmethod
    def fixed(cls, messages_per_batch: int, message_bytes: int) -> Shape:
        return cls(messages_per_batch, message_bytes, message_bytes)

    @property
    def is_fixed(self) -> bool:
        return self.least_bytes == self.most_bytes

    def _of(self, message_bytes: float) -> int:
        return BATCH_HEADER_BYTES + round(self.messages_per_batch * (MESSAGE_HEADER_BYTES + message_bytes))

    @property
    def batch_bytes(self) -> int:
        """The mean."""
        return self._of((self.least_bytes + self.most_bytes) / 2)

    @property
    def largest_batch_bytes(self) -> int:
        return self._of(self.most_bytes)

    @property
    def poll_reply_bytes(self) -> int:
        """The mean."""
        return POLL_REPLY_HEAD_BYTES + self.batch_bytes

    def make_batches(self, seed: int) -> list[bytes]:
        """A pool of batches with random payloads, sizes drawn from the range."""
        wanted = max(1, min(POOL_BATCHES, POOL_BYTES // self.largest_batch_bytes))
        return [self._make_batch(random.Random(seed * POOL_BATCHES + number)) for number in range(wanted)]

    def _make_batch(self, drawn: random.Random) -> bytes:
        sizes = (drawn.randint(self.least_bytes, self.most_bytes) for _ in range(self.messages_per_batch))
        return encode_batch([os.urandom(size) for size in sizes])


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One load, whole.

    senders, pollers: connections. switches: each request goes to a partition drawn anew, else connection i stays on
    partition i modulo their number. depth: requests in flight of a connection. rate: requests/s of all connections
    together, on a schedule (open loop); None: closed loop. requests: of all senders, or of all pollers, together; None:
    until the time is over; polls that follow end with the sends. log_messages: polls go round below that offset; 0:
    they follow the end, one in flight.
    stream: the one whose topic TOPIC is loaded.
    """

    shape: Shape
    senders: int = 0
    pollers: int = 0
    partitions: int = 1
    switches: bool = False
    depth: int = 1
    rate: float | None = None
    requests: int | None = None
    log_messages: int = 0
    stream: str = STREAM

    @property
    def connections(self) -> int:
        return self.senders + self.pollers

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind, count in (("send", self.senders), ("poll", self.pollers)) if count)


@dataclass(frozen=True, slots=True)
class ConnectionPlan:
    """number: 1 or more, in no other load on the same topic. request_limit: MOST_NS when there is none."""

    number: int
    sends: bool
    depth: int
    first_partition: int
    partitions: int
    first_offset: int
    request_limit: int


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """The load of one process, pinned to `core`. password: None when the peer is the echo, which knows no login."""

    host: str
    port: int
    password: str | None
    core: int
    spec: LoadSpec
    connections: tuple[ConnectionPlan, ...]
    seed: int

    @property
    def interval_ns(self) -> float:
        """Between requests of this process; 0: a closed loop. Its share of the rate is that of the connections."""
        if self.spec.rate is None:
            return 0.0
        return 1e9 / (self.spec.rate * len(self.connections) / self.spec.connections)


def plan_connections(spec: LoadSpec, first_number: int) -> list[ConnectionPlan]:
    return [_connection(spec, index, first_number + index) for index in range(spec.connections)]


def _connection(spec: LoadSpec, index: int, number: int) -> ConnectionPlan:
    sends = index < spec.senders
    own, beside = (index, spec.senders) if sends else (index - spec.senders, spec.pollers)
    limit = MOST_NS
    if spec.requests is not None and (sends or not polls_end_with_sends(spec)):
        limit = spec.requests // beside + (own < spec.requests % beside)
    return ConnectionPlan(
        number=number,
        sends=sends,
        depth=spec.depth if sends or spec.log_messages else 1,
        first_partition=0 if spec.switches else own % spec.partitions,
        partitions=spec.partitions if spec.switches else 1,
        first_offset=0 if sends else _first_offset(spec, own),
        request_limit=limit,
    )


def polls_end_with_sends(spec: LoadSpec) -> bool:
    return spec.requests is not None and bool(spec.senders and spec.pollers) and not spec.log_messages


def _first_offset(spec: LoadSpec, own: int) -> int:
    """Pollers of one partition begin apart from each other, each at a batch's first message."""
    beside = max(1, spec.pollers if spec.switches else -(-spec.pollers // spec.partitions))
    place = own if spec.switches else own // spec.partitions
    step = spec.shape.messages_per_batch
    return spec.log_messages * place // beside // step * step


def plan_processes(
    spec: LoadSpec,
    host: str,
    port: int,
    password: str | None,
    cores: Sequence[int],
    processes: int,
    first_number: int = 1,
) -> list[ProcessPlan]:
    """Share the connections of each kind out evenly, cores in turn.

    No process has only polls that end with the sends: it would not see their end.
    """
    connections = plan_connections(spec, first_number)
    sends, polls = connections[: spec.senders], connections[spec.senders :]
    most = spec.senders if polls_end_with_sends(spec) else max(spec.senders, spec.pollers)
    count = min(processes, most)
    shares = [(*sends[number::count], *polls[number::count]) for number in range(count)]
    return [
        ProcessPlan(host, port, password, cores[number % len(cores)], spec, share, first_number + number)
        for number, share in enumerate(shares)
    ]


def prefill_spec(shape: Shape, partitions: int, total_bytes: int) -> LoadSpec:
    """Sends that put equally many batches into every partition, at least one."""
    batches = max(1, total_bytes // partitions // shape.batch_bytes)
    depth = max(1, min(16, (8 << 20) // shape.largest_batch_bytes))
    return LoadSpec(shape, senders=partitions, partitions=partitions, depth=depth, requests=batches * partitions)


def polls_over(spec: LoadSpec, filled: LoadSpec) -> LoadSpec:
    """The same polls, going round over what `filled` sent."""
    assert filled.requests is not None
    return replace(spec, log_messages=filled.requests // filled.partitions * filled.shape.messages_per_batch)
