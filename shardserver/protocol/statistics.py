"""The reply of get_stats (commands 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Reader


@dataclass(frozen=True, slots=True)
class CacheMetrics:
    """Of one partition. hit_ratio: 0..1."""

    stream_id: int
    topic_id: int
    partition_id: int
    hits: int
    misses: int
    hit_ratio: float

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.u32(), reader.u32(), reader.u32(), reader.u64(), reader.u64(), reader.f32())

    def encode(self) -> bytes:
        place = wire.u32(self.stream_id) + wire.u32(self.topic_id) + wire.u32(self.partition_id)
        return place + wire.u64(self.hits) + wire.u64(self.misses) + wire.f32(self.hit_ratio)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Fields in the order of the wire. cpu: percent. memory and disk: bytes. run_time, start_time: microseconds."""

    process_id: int
    cpu_usage: float
    total_cpu_usage: float
    memory_usage: int
    total_memory: int
    available_memory: int
    run_time: int
    start_time: int
    read_bytes: int
    written_bytes: int
    messages_size_bytes: int
    streams_count: int
    topics_count: int
    partitions_count: int
    segments_count: int
    messages_count: int
    clients_count: int
    consumer_groups_count: int
    hostname: str
    os_name: str
    os_version: str
    kernel_version: str
    server_version: str
    server_semver: int
    cache_metrics: tuple[CacheMetrics, ...]
    threads_count: int
    free_disk_space: int
    total_disk_space: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Keyword arguments are evaluated in their order, which is the order of the wire."""
        reader = Reader(body)
        statistics = cls(
            process_id=reader.u32(),
            cpu_usage=reader.f32(),
            total_cpu_usage=reader.f32(),
            memory_usage=reader.u64(),
            total_memory=reader.u64(),
            available_memory=reader.u64(),
            run_time=reader.u64(),
            start_time=reader.u64(),
            read_bytes=reader.u64(),
            written_bytes=reader.u64(),
            messages_size_bytes=reader.u64(),
            streams_count=reader.u32(),
            topics_count=reader.u32(),
            partitions_count=reader.u32(),
            segments_count=reader.u32(),
            messages_count=reader.u64(),
            clients_count=reader.u32(),
            consumer_groups_count=reader.u32(),
            hostname=reader.str32(),
            os_name=reader.str32(),
            os_version=reader.str32(),
            kernel_version=reader.str32(),
            server_version=reader.str32(),
            server_semver=reader.u32(),
            cache_metrics=tuple(CacheMetrics.read(reader) for _ in range(reader.u32())),
            threads_count=reader.u32(),
            free_disk_space=reader.u64(),
            total_disk_space=reader.u64(),
        )
        reader.finish()
        return statistics

    def encode(self) -> bytes:
        memory = (self.memory_usage, self.total_memory, self.available_memory)
        traffic = (self.run_time, self.start_time, self.read_bytes, self.written_bytes, self.messages_size_bytes)
        counts = (self.streams_count, self.topics_count, self.partitions_count, self.segments_count)
        texts = (self.hostname, self.os_name, self.os_version, self.kernel_version, self.server_version)
        parts = [wire.u32(self.process_id), wire.f32(self.cpu_usage), wire.f32(self.total_cpu_usage)]
        parts += [*map(wire.u64, memory + traffic), *map(wire.u32, counts), wire.u64(self.messages_count)]
        parts += [wire.u32(self.clients_count), wire.u32(self.consumer_groups_count), *map(wire.str32, texts)]
        parts += [wire.u32(self.server_semver), wire.u32(len(self.cache_metrics))]
        parts += [one.encode() for one in self.cache_metrics]
        parts += [wire.u32(self.threads_count), wire.u64(self.free_disk_space), wire.u64(self.total_disk_space)]
        return b"".join(parts)


def semver_number(version: str) -> int:
    """Major, then minor and patch with three digits each: 0.9.0 is 9000. A suffix such as -edge.5 does not count."""
    major, minor, patch = (int(part) for part in version.partition("-")[0].split(".")[:3])
    return major * 1_000_000 + minor * 1000 + patch
