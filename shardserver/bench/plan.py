"""What one load does, and what it found."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from shardserver.bench.load import LoadResult

BATCH_HEADER_BYTES, MESSAGE_HEADER_BYTES = 256, 48
FRAME_HEADER_BYTES = 256
SEND_REPLY_BYTES = FRAME_HEADER_BYTES + 24
POLL_REPLY_HEAD_BYTES = FRAME_HEADER_BYTES + 16
USERNAME, STREAM, TOPIC = "iggy", "shardserver-bench", "load"
# Room for latencies, per second and connection: more answers than one loop can take in.
MOST_ANSWERS_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """Messages and batches: payload bytes of a message, messages of a batch, requests in flight of a connection."""

    message_bytes: int
    messages_per_batch: int
    depth: int

    @property
    def batch_bytes(self) -> int:
        return BATCH_HEADER_BYTES + self.messages_per_batch * (MESSAGE_HEADER_BYTES + self.message_bytes)

    @property
    def poll_reply_bytes(self) -> int:
        return POLL_REPLY_HEAD_BYTES + self.batch_bytes


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One connection's load.

    kind: send or poll. password: None when the peer is the echo, which knows no login.
    log_messages: a poll goes round over the offsets below it; 0: it follows the end of the log.
    """

    kind: str
    host: str
    port: int
    password: str | None
    partition: int
    shape: Shape
    cores: tuple[int, ...]
    log_messages: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """CLOCK_MONOTONIC, ns: begin, count from, stop beginning requests."""

    start_ns: int
    measure_from_ns: int
    until_ns: int

    @property
    def capacity(self) -> int:
        """Latencies to keep room for."""
        return (self.until_ns - self.measure_from_ns) * MOST_ANSWERS_PER_S // 1_000_000_000 + 1024

    @property
    def window_s(self) -> float:
        return (self.until_ns - self.measure_from_ns) / 1e9


@dataclass(slots=True)
class Measurement:
    """Sums over the connections of one kind. latencies: ns; window_*: replies that arrived in the window."""

    window_s: float
    answered: int = 0
    refused: int = 0
    first_status: int = 0
    messages: int = 0
    empty: int = 0
    window_answered: int = 0
    window_messages: int = 0
    unrecorded: int = 0
    latencies: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, result: LoadResult, latencies: bytes) -> None:
        self.answered += result.answered
        self.refused += result.refused
        self.first_status = self.first_status or result.first_status
        self.messages += result.messages
        self.empty += result.empty
        self.window_answered += result.window_answered
        self.window_messages += result.window_messages
        self.unrecorded += result.unrecorded
        self.latencies.frombytes(latencies)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of all loads. CPU seconds are those of the window; None: that process is not on this machine."""

    window_s: float
    kinds: dict[str, Measurement]
    peer_cpu_s: float | None
    peer_processes: int
    load_cpu_s: float

    @property
    def window_answered(self) -> int:
        return sum(one.window_answered for one in self.kinds.values())

    @property
    def peer_busy(self) -> float | None:
        """Share of one core that a peer process used, 0..1; above 1 when its threads ran beside each other."""
        return None if self.peer_cpu_s is None else self.peer_cpu_s / self.window_s / max(1, self.peer_processes)
