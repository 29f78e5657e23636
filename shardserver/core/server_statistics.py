"""The figures of get_stats: of all shards together, and of the machine."""

from __future__ import annotations

import os
import platform
import socket

import psutil

from shardserver.core.context import ShardContext
from shardserver.protocol.statistics import Statistics, semver_number


async def gather_statistics(context: ShardContext) -> Statistics:
    """Asked of all shards; memory, I/O and CPU are those of their processes. Raises BackpressureError: one is down."""
    totals = await context.shards.totals()
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(context.data_directory)
    limit = min(memory.total, context.memory_limit_bytes)
    streams = context.metadata.streams.values()
    supervisor = psutil.Process(os.getppid())
    started_at = int(supervisor.create_time() * 1e6)
    return Statistics(
        process_id=supervisor.pid,
        cpu_usage=totals.cpu_percent,
        total_cpu_usage=context.shards.machine_cpu.percent(),
        memory_usage=totals.memory_bytes,
        total_memory=limit,
        available_memory=max(0, min(memory.available, limit - totals.memory_bytes)),
        run_time=max(0, context.clock() - started_at),
        start_time=started_at,
        read_bytes=totals.read_bytes,
        written_bytes=totals.written_bytes,
        messages_size_bytes=totals.size_bytes,
        streams_count=len(streams),
        topics_count=sum(len(stream.topics) for stream in streams),
        partitions_count=context.metadata.partitions_count,
        segments_count=totals.segments,
        messages_count=totals.messages,
        clients_count=totals.clients,
        consumer_groups_count=sum(len(topic.groups) for stream in streams for topic in stream.topics.values()),
        hostname=socket.gethostname(),
        os_name=platform.system(),
        os_version=platform.version(),
        kernel_version=platform.release(),
        server_version=context.version,
        server_semver=semver_number(context.version),
        cache_metrics=(),
        threads_count=totals.threads,
        free_disk_space=disk.free,
        total_disk_space=disk.total,
    )
