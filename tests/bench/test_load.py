"""The load loop against a server that answers when it is told to: what is charged, what is summed up."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass

import pytest
import xxhash

from shardserver.bench.latencies import Latencies, empty_counts
from shardserver.bench.load import MOST_NS, PROGRESS_LENGTH, LoadConnection, LoadCounts, run_load
from shardserver.bench.plan import Shape
from shardserver.bench.readback import Readback
from shardserver.errors import ProtocolError
from shardserver.protocol.batch import stamp_batch, verify_batch
from tests.bench.fake_server import FakeServer, batch_of, load_connection, request_of, send_reply

INTERVAL_NS, DUE = 1_000_000, 100


@dataclass
class Ran:
    sends: LoadCounts
    latencies: Latencies
    messages: list[int]
    hashes: list[int]


def run(
    connection: LoadConnection,
    shape: Shape,
    *,
    start_ns: int,
    until_ns: int = MOST_NS,
    interval_ns: float = 0,
    drain_ns: int = 0,
    partitions: int = 1,
) -> Ran:
    counts, unused = empty_counts(), empty_counts()
    messages, hashes = (array("Q", bytes(8 * partitions)) for _ in range(2))
    sends, _ = run_load(
        [connection],
        shape.make_batches(1),
        send_latencies=memoryview(counts),
        poll_latencies=memoryview(unused),
        acked_messages=memoryview(messages),
        acked_hash=memoryview(hashes),
        progress=memoryview(array("Q", bytes(8 * PROGRESS_LENGTH))),
        start_ns=start_ns,
        measure_from_ns=start_ns,
        until_ns=until_ns,
        drain_ns=drain_ns,
        interval_ns=interval_ns,
        messages_per_batch=shape.messages_per_batch,
        seed=7,
    )
    latencies = Latencies()
    latencies.add_counts(counts)
    return Ran(sends, latencies, list(messages), list(hashes))


def stalled(depth: int, drain_ns: int, *, answered_at_once: int = 20) -> tuple[Ran, FakeServer, int]:
    """An open loop of 100 requests, 1 ms apart; the server stalls after 20 of them until the last was due."""
    start = time.monotonic_ns() + 10_000_000
    until = start + DUE * INTERVAL_NS

    def answer(number: int, frame: bytes) -> bytes:
        if number == answered_at_once:
            time.sleep(max(0, until + 5_000_000 - time.monotonic_ns()) / 1e9)  # the stall itself
        return send_reply(frame, number)

    with FakeServer(answer) as server, server.connect() as client:
        connection = load_connection(client, messages=1, depth=depth, requests=MOST_NS)
        shape = Shape.fixed(1, 10)
        ran = run(connection, shape, start_ns=start, until_ns=until, interval_ns=INTERVAL_NS, drain_ns=drain_ns)
    return ran, server, start


@pytest.mark.parametrize("depth", [1, 1000])
def test_every_request_that_was_due_in_a_stall_is_charged_with_its_wait(depth: int) -> None:
    ran, server, start = stalled(depth, drain_ns=30_000_000_000)
    assert ran.sends.answered == ran.latencies.count == len(server.frames) == DUE
    assert ran.sends.unsent == 0
    due_to_release = sorted(
        max(0, released - (start + number * INTERVAL_NS)) for number, released in enumerate(server.released_ns)
    )
    for share in (30, 50, 80):
        least = due_to_release[DUE * share // 100 - 1]
        found = ran.latencies.percentile_ns(share)
        assert found is not None and found >= least > INTERVAL_NS
    longest = ran.latencies.max_ns()
    assert longest is not None and longest >= due_to_release[-1] >= (DUE - 20) * INTERVAL_NS


def test_what_was_never_begun_is_counted_and_charged_up_to_the_end() -> None:
    ran, server, _ = stalled(1, drain_ns=0)
    assert ran.sends.unsent == DUE - len(server.frames) == DUE - 21
    assert ran.latencies.count == DUE
    longest = ran.latencies.max_ns()
    assert longest is not None and longest >= (DUE - 20) * INTERVAL_NS


def test_an_open_loop_does_not_begin_before_a_request_is_due() -> None:
    start = time.monotonic_ns() + 10_000_000
    arrived: list[int] = []

    def answer(number: int, frame: bytes) -> bytes:
        arrived.append(time.monotonic_ns())
        return send_reply(frame, number)

    with FakeServer(answer) as server, server.connect() as client:
        connection = load_connection(client, messages=1, depth=50, requests=20)
        ran = run(connection, Shape.fixed(1, 10), start_ns=start, interval_ns=INTERVAL_NS)
    assert ran.sends.answered == 20
    assert all(moment >= start + number * INTERVAL_NS for number, moment in enumerate(arrived))


@pytest.mark.parametrize("shape", [Shape.fixed(1, 100), Shape(7, 1, 2000), Shape.fixed(2, 5000)])
def test_sends_are_valid_and_all_different_and_summed_up_as_they_are_read_back(shape: Shape) -> None:
    requests, partitions = 50, 3
    ends = [0] * partitions

    def partition_of(frame: bytes) -> int:
        at = len(frame) - len(batch_of(frame)) - 8
        return int.from_bytes(frame[at : at + 4], "little")

    def answer(number: int, frame: bytes) -> bytes:
        partition = partition_of(frame)
        ends[partition] += shape.messages_per_batch
        return send_reply(frame, ends[partition] - shape.messages_per_batch)

    with FakeServer(answer) as server, server.connect() as client:
        connection = load_connection(
            client, messages=shape.messages_per_batch, depth=4, requests=requests, partitions=partitions
        )
        ran = run(connection, shape, start_ns=0, partitions=partitions)
    assert [request_of(frame) for frame in server.frames] == list(range(1, requests + 1))
    assert ran.messages == ends and all(ends)
    stored = [bytearray(batch_of(frame)) for frame in server.frames]
    assert all(verify_batch(batch, shape.messages_per_batch) == 0 for batch in stored)
    assert len({bytes(batch) for batch in stored}) == requests
    readers = [Readback() for _ in range(partitions)]
    for frame, batch in zip(server.frames, stored, strict=True):
        reader = readers[partition_of(frame)]
        stamp_batch(batch, partition_of(frame), reader.next_offset, 0)
        assert reader.take(batch) == shape.messages_per_batch, reader.fault
    assert [reader.hash for reader in readers] == ran.hashes


def test_the_hash_of_a_partition_is_the_sum_over_checksum_and_offset() -> None:
    with FakeServer(lambda number, frame: send_reply(frame, 5 + number)) as server, server.connect() as client:
        connection = load_connection(client, messages=1, depth=1, requests=2)
        ran = run(connection, Shape.fixed(1, 8), start_ns=0)
    checksums = [batch_of(frame)[256:264] for frame in server.frames]
    due = sum(xxhash.xxh3_64_intdigest(checksum, 5 + number) for number, checksum in enumerate(checksums))
    assert ran.hashes == [due % 2**64]


def test_a_refused_send_is_counted_and_neither_timed_nor_acknowledged() -> None:
    def answer(number: int, frame: bytes) -> bytes:
        return send_reply(frame, number, 4006 * (number == 1))

    with FakeServer(answer) as server, server.connect() as client:
        connection = load_connection(client, messages=1, depth=1, requests=3)
        ran = run(connection, Shape.fixed(1, 8), start_ns=0)
    assert (ran.sends.answered, ran.sends.refused, ran.sends.first_status) == (3, 1, 4006)
    assert ran.latencies.count == ran.messages[0] == 2


def test_a_reply_to_another_request_ends_the_load() -> None:
    def answer(number: int, frame: bytes) -> bytes:
        return send_reply(frame[:168] + bytes(8) + frame[176:], 0)

    with FakeServer(answer) as server, server.connect() as client:
        connection = load_connection(client, messages=1, depth=1, requests=3)
        with pytest.raises(ProtocolError, match="not the one due"):
            run(connection, Shape.fixed(1, 8), start_ns=0)
