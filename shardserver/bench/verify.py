"""Whether a topic holds what was acknowledged: count, order and hash of every partition, read back in full."""

from __future__ import annotations

from typing import Protocol

from shardserver.bench.outcome import Acknowledged
from shardserver.bench.plan import STREAM, TOPIC, Shape
from shardserver.bench.readback import Readback
from shardserver.client.requests import PollReply

# Asked for at a time; whole batches.
READ_BYTES = 4 << 20
MOST_FAULTS = 10


class Reader(Protocol):
    """What is asked of a connection."""

    def poll(self, stream: str, topic: str, partition: int, offset: int, count: int) -> PollReply: ...


def find_faults(connection: Reader, acknowledged: Acknowledged, shape: Shape, stream: str = STREAM) -> list[str]:
    """A sentence for each partition that is not as it was acknowledged, at most ten. Every partition is read."""
    faults: list[str] = []
    step = shape.messages_per_batch * max(1, READ_BYTES // shape.largest_batch_bytes)
    for partition, (messages, value) in enumerate(zip(acknowledged.messages, acknowledged.hashes, strict=True)):
        fault = partition_fault(connection, stream, partition, messages, value, step)
        if fault is not None and len(faults) < MOST_FAULTS:
            faults.append(f"partition {partition}: {fault}")
    return faults


def partition_fault(
    connection: Reader, stream: str, partition: int, messages: int, value: int, step: int
) -> str | None:
    """None: it holds exactly these messages. step: messages asked for at a time."""
    readback = Readback()
    while readback.fault is None:
        reply = connection.poll(stream, TOPIC, partition, readback.next_offset, step)
        if reply.count == 0:
            break
        if readback.take(reply.batches) != reply.count and readback.fault is None:
            return f"a reply from offset {readback.next_offset} on does not hold the {reply.count} messages it names"
    if readback.fault is not None:
        return readback.fault
    if readback.messages != messages:
        return f"{messages} messages were acknowledged, it holds {readback.messages}"
    if readback.hash != value:
        return f"its {messages} messages are not those that were acknowledged at their offsets"
    return None
