"""What one run of a load found."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from shardserver.bench.latencies import Latencies
from shardserver.bench.load import LoadCounts


@dataclass(slots=True)
class Measurement:
    """Sums over the connections of one kind. window_*: of replies that arrived in the window."""

    answered: int = 0
    refused: int = 0
    first_status: int = 0
    messages: int = 0
    empty: int = 0
    unsent: int = 0
    window_answered: int = 0
    window_messages: int = 0
    window_payload_bytes: int = 0
    window_batch_bytes: int = 0
    last_answer_ns: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def add(self, counts: LoadCounts, latencies: array[int]) -> None:
        self.answered += counts.answered
        self.refused += counts.refused
        self.first_status = self.first_status or counts.first_status
        self.messages += counts.messages
        self.empty += counts.empty
        self.unsent += counts.unsent
        self.window_answered += counts.window_answered
        self.window_messages += counts.window_messages
        self.window_payload_bytes += counts.window_payload_bytes
        self.window_batch_bytes += counts.window_batch_bytes
        self.last_answer_ns = max(self.last_answer_ns, counts.last_answer_ns)
        self.latencies.add_counts(latencies)


@dataclass(slots=True)
class Acknowledged:
    """By partition: messages acknowledged, and the sum of their hashes modulo 2^64 (batches.pxd)."""

    messages: list[int]
    hashes: list[int]

    @classmethod
    def none(cls, partitions: int) -> Acknowledged:
        return cls([0] * partitions, [0] * partitions)

    def add(self, messages: array[int], hashes: array[int]) -> None:
        for partition, (count, value) in enumerate(zip(messages, hashes, strict=True)):
            self.messages[partition] += count
            self.hashes[partition] = (self.hashes[partition] + value) % 2**64

    def merge(self, other: Acknowledged) -> None:
        self.add(array("Q", other.messages), array("Q", other.hashes))

    @property
    def total(self) -> int:
        return sum(self.messages)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a load. CPU seconds are those of the window; peer's None: its processes are not known here.

    peer_cores: how many cores the peer's processes share.
    """

    window_s: float
    kinds: dict[str, Measurement]
    acknowledged: Acknowledged
    peer_cpu_s: float | None
    peer_cores: int
    load_cpu_s: float

    @property
    def window_answered(self) -> int:
        return sum(one.window_answered for one in self.kinds.values())

    @property
    def requests_per_s(self) -> float:
        return self.window_answered / self.window_s

    @property
    def batch_bytes_per_s(self) -> float:
        return sum(one.window_batch_bytes for one in self.kinds.values()) / self.window_s

    @property
    def peer_busy(self) -> float | None:
        """Share of its cores that the peer used, 0..1; above 1 when threads of it ran elsewhere."""
        return None if self.peer_cpu_s is None else self.peer_cpu_s / self.window_s / max(1, self.peer_cores)

    @property
    def peer_us_per_request(self) -> float | None:
        if self.peer_cpu_s is None or not self.window_answered:
            return None
        return self.peer_cpu_s * 1e6 / self.window_answered

    @property
    def refused(self) -> int:
        return sum(one.refused for one in self.kinds.values())

    def p50_ns(self) -> int | None:
        merged = Latencies()
        for one in self.kinds.values():
            merged.merge(one.latencies)
        return merged.percentile_ns(50)
