"""The compiled client of the bench as a second load: batches at a steady pace to a topic of its own, and its judge."""

from __future__ import annotations

import asyncio
import time
from array import array
from contextlib import suppress

from shardserver.bench.latencies import empty_counts
from shardserver.bench.load import MOST_NS, PROGRESS_LENGTH, LoadConnection, run_load
from shardserver.bench.plan import Shape
from shardserver.bench.readback import Readback
from shardserver.errors import ShardServerError
from tests.wire_connection import WireConnection

STREAM, TOPIC = "chaos", "bulk"
PARTITIONS, DEPTH = 3, 4
SHAPE = Shape(10, 20, 2000)
INTERVAL_NS = 10_000_000
# From a frame's end: the partition (u32) and the count of messages (u32) stand before the batch.
PARTITION_FROM_END = 8


class Bulk:
    """acknowledged: messages of each partition, through all lives of the server."""

    def __init__(self) -> None:
        self._acknowledged, self._hashes = (array("Q", bytes(8 * PARTITIONS)) for _ in range(2))
        self._batches = SHAPE.make_batches(1)
        self._number = 0

    @property
    def acknowledged(self) -> int:
        return sum(self._acknowledged)

    def create(self, address: str) -> None:
        with WireConnection(address) as one:
            one.create_stream(STREAM)
            one.create_topic(STREAM, TOPIC, PARTITIONS)

    def delete(self, address: str) -> None:
        with WireConnection(address) as one:
            one.delete_stream(STREAM)

    async def run(self, address: str, seconds: float) -> None:
        """One connection for so long, or until the server does not answer it any more."""
        with suppress(OSError, ShardServerError):
            await asyncio.to_thread(self._run, address, time.monotonic_ns() + int(seconds * 1e9))

    def _run(self, address: str, until_ns: int) -> None:
        self._number += 1
        latencies, unused = empty_counts(), empty_counts()
        with WireConnection(address) as client:
            run_load(
                [self._connection(client)],
                self._batches,
                send_latencies=memoryview(latencies),
                poll_latencies=memoryview(unused),
                acked_messages=memoryview(self._acknowledged),
                acked_hash=memoryview(self._hashes),
                progress=memoryview(array("Q", bytes(8 * PROGRESS_LENGTH))),
                start_ns=time.monotonic_ns(),
                measure_from_ns=time.monotonic_ns(),
                until_ns=until_ns,
                interval_ns=INTERVAL_NS,
                messages_per_batch=SHAPE.messages_per_batch,
                seed=self._number,
            )

    def _connection(self, client: WireConnection) -> LoadConnection:
        frame = client.send_frame(STREAM, TOPIC, 0, b"", SHAPE.messages_per_batch)
        sock = client.detach_socket()
        sock.setblocking(False)
        place = len(frame) - PARTITION_FROM_END
        return LoadConnection(sock.fileno(), True, self._number, frame, DEPTH, place, 0, 0, PARTITIONS, 0, MOST_NS)

    def judge(self, address: str) -> tuple[int, list[str]]:
        """(messages lost, what is out of order, doubled or damaged).

        Lost is what was acknowledged beyond what is there: requests that were in flight at a kill may hide as many.
        """
        lost, faults = 0, []
        with WireConnection(address) as one:
            for partition in range(PARTITIONS):
                readback = Readback()
                while readback.fault is None:
                    reply = one.poll(STREAM, TOPIC, partition, readback.next_offset, 1000)
                    if reply.count == 0:
                        break
                    readback.take(reply.batches)
                lost += max(0, self._acknowledged[partition] - readback.messages)
                faults += [f"bulk partition {partition}: {readback.fault}"] if readback.fault else []
        return lost, faults
