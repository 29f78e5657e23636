from collections.abc import Sequence
from typing import NamedTuple

from shardserver.memory.buffers import Buffer, WritableBuffer

COUNTS_LENGTH: int
PROGRESS_LENGTH: int
MOST_NS: int

class LoadConnection(NamedTuple):
    socket: int
    sends: bool
    number: int
    frame: bytes
    depth: int
    partition_at: int
    offset_at: int
    first_partition: int
    partitions: int
    first_offset: int
    request_limit: int

class LoadCounts(NamedTuple):
    answered: int
    refused: int
    first_status: int
    messages: int
    empty: int
    unsent: int
    window_answered: int
    window_messages: int
    window_payload_bytes: int
    window_batch_bytes: int
    first_due_ns: int
    last_answer_ns: int

def run_load(
    connections: Sequence[LoadConnection],
    batches: Sequence[Buffer],
    *,
    send_latencies: WritableBuffer,
    poll_latencies: WritableBuffer,
    acked_messages: WritableBuffer,
    acked_hash: WritableBuffer,
    progress: WritableBuffer,
    start_ns: int,
    measure_from_ns: int,
    until_ns: int,
    drain_ns: int = 0,
    interval_ns: float = 0,
    messages_per_batch: int,
    log_messages: int = 0,
    seed: int = 1,
) -> tuple[LoadCounts, LoadCounts]: ...
def latency_index(value_ns: int) -> int: ...
