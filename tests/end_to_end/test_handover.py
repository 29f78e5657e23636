"""Connections that move to the shard they talk to, and what crosses shards when they do not."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardserver.protocol.table import Command
from tests.pipeline import Pipeline, Step, expect_offset, expect_payloads
from tests.sharded_server import ShardedServer, rule
from tests.supervisor.servers import children, is_running, wait_until
from tests.wire_connection import WireConnection, poll_request, send_request

SIZES = (20, 300, 5_000, 70_000, 1 << 20)
MESSAGE_BYTES = 60 << 20


def started(directory: Path, cores: int, config: str, topics: int) -> ShardedServer:
    """A server whose stream s has the topics on0, on1 … of one partition, each on the shard of its number."""
    made = ShardedServer(directory, cores=cores, config=config + PER_SHARD_OF[cores])
    try:
        made.serve()
        with made.connect() as connection:
            connection.create_stream("s")
            for shard in range(topics):
                connection.create_topic("s", f"on{shard}", 1)
    except BaseException:
        made.kill()
        raise
    return made


PER_SHARD_OF = {cores: "".join(rule("s", f"on{shard}", shard) for shard in range(cores)) for cores in (2, 4)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedServer]:
    made = started(tmp_path_factory.mktemp("handover"), 4, "[net]\nhandover_requests = 4\n", 4)
    yield made
    made.kill()


def handovers(server: ShardedServer) -> list[tuple[int, int]]:
    """(handed over in use, received) of each shard."""
    return [(one["handover"]["handed_in_use"], one["handover"]["received"]) for one in server.stats()]


def test_a_connection_goes_where_its_partition_is_and_stays_who_it_was(server: ShardedServer) -> None:
    with server.connect() as connection:
        who, session = connection.ask(Command.GET_ME).info, connection.session
        home = who.client_id & 0xFF
        away = (home + 1) % 4
        before = handovers(server)
        sent = [f"{number}".encode() for number in range(100)]
        base = connection.send_payloads(f"on{away}", 0, sent[0])
        assert [connection.send_payloads(f"on{away}", 0, one) for one in sent[1:]] == list(range(base + 1, base + 100))
        after = handovers(server)
        assert connection.ask(Command.GET_ME).info == who
        assert connection.login("iggy", "secret") == session
        assert connection.payloads(f"on{away}", 0, value=base) == sent
        assert connection.create_stream(f"made-by-{who.client_id}") > 0
        listed = [one for one in connection.ask(Command.GET_CLIENTS).clients if one.client_id == who.client_id]
        assert listed == [who]
    assert after[home][0] == before[home][0] + 1 and after[away][1] == before[away][1] + 1


def mixed_steps(seed: int, count: int) -> Iterator[Step]:
    """Sends and polls, in runs for one partition after another, so that the connection moves again and again."""
    chance, sent = random.Random(seed), [list[bytes]() for _ in range(4)]
    partition = 0
    for number in range(count):
        if chance.random() < 0.15:
            partition = chance.randrange(4)
        known = sent[partition]
        if known and chance.random() < 0.3:
            first = chance.randrange(max(0, len(known) - 4), len(known))
            expected = [one[:] for one in known[first:]]
            yield (
                Command.POLL_MESSAGES,
                poll_request(f"own{seed}-{partition}", 0, first, len(expected)),
                (expect_payloads(first, expected)),
            )
            continue
        payload = f"{seed}/{number} ".encode().ljust(chance.choice(SIZES), b"x")
        known.append(payload)
        yield Command.SEND_MESSAGES, send_request(f"own{seed}-{partition}", 0, payload), expect_offset(len(known) - 1)


def test_no_pipelined_answer_is_lost_or_out_of_order_while_connections_move(server: ShardedServer) -> None:
    before = handovers(server)
    with server.connect() as connection:
        for seed in range(4):
            for partition in range(4):
                connection.create_topic("s", f"own{seed}-{partition}", 1)

    def run(seed: int) -> int:
        with server.connect() as connection:
            return Pipeline(connection, 64).run(mixed_steps(seed, 700))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [700] * 4
    after = handovers(server)
    moved = sum(one for one, _ in after) - sum(one for one, _ in before)
    assert moved >= 8, f"{moved} hand-overs: too few to prove anything"
    at_accept = sum(one["handover"]["handed_at_accept"] for one in server.stats())
    assert sum(one for one, _ in after) + at_accept == sum(one for _, one in after)


def test_messages_of_nearly_a_whole_frame_cross_shards(tmp_path: Path) -> None:
    config = '[net]\naccept_shards = "0"\nhandover_requests = 0\n'
    server = started(tmp_path, 2, config, 2)
    try:
        sent = [bytes([65 + number]) * MESSAGE_BYTES for number in range(2)]
        with server.connect() as connection:
            for number, payload in enumerate(sent):
                assert connection.send_payloads("on1", 0, payload) == number
            for number, payload in enumerate(sent):
                assert connection.payloads("on1", 0, value=number, count=1) == [payload]
        figures = server.stats()
        assert figures[1]["peers"][0]["slots_taken"] >= 4, figures[1]["peers"]
        server.kill()
        server.serve()
        with server.connect() as connection:
            assert connection.read_all("on1", 0) == sent
    finally:
        server.kill()


SMALL = """
[net]
handover_requests = 0
max_frame_bytes = 2097152
in_flight_bytes_per_connection = 2097152
in_flight_bytes_per_shard = 8388608
[router]
ring_slots = 16
arena_bytes = 33554432
[storage]
tail_bytes = 4194304
[journal]
file_bytes = 2097152
files = 4
"""


def crossing_steps(name: str) -> Iterator[Step]:
    sent = {"on0": list[bytes](), "on1": list[bytes]()}
    chance = random.Random(name)
    for number in range(60):
        topic = chance.choice(("on0", "on1"))
        known = sent[topic]
        if known and chance.random() < 0.4:
            expected = known[-3:]
            first = len(known) - len(expected)
            request = poll_request(f"{name}-{topic}", 0, first, len(expected))
            yield Command.POLL_MESSAGES, request, expect_payloads(first, list(expected))
            continue
        payload = f"{name}/{number} ".encode().ljust(chance.choice((20, 5_000, 200_000)), b"x")
        known.append(payload)
        yield Command.SEND_MESSAGES, send_request(f"{name}-{topic}", 0, payload), expect_offset(len(known) - 1)


def test_small_rings_and_a_small_arena_hold_up_nobody_for_good(tmp_path: Path) -> None:
    config = SMALL + rule("s", "*-on0", 0) + rule("s", "*-on1", 1)
    server = started(tmp_path, 2, config, 2)
    try:
        with server.connect() as connection:
            for number in range(64):
                for topic in ("on0", "on1"):
                    connection.create_topic("s", f"{number}-{topic}", 1)
        connections = [server.connect() for _ in range(64)]
        with ThreadPoolExecutor(64) as pool:
            steps = (crossing_steps(str(number)) for number in range(64))
            answers = list(pool.map(lambda one, its: Pipeline(one, 16).run(its), connections, steps))
        held = [one["connections"] for one in server.stats()]
        for one in connections:
            one.close()
    finally:
        server.kill()
    assert answers == [60] * 64 and held == [32, 32]


def test_whoever_connects_during_recovery_is_answered_when_all_shards_have_recovered(tmp_path: Path) -> None:
    server = started(tmp_path, 4, "", 4)
    try:
        with server.connect() as connection:
            for shard in range(4):
                connection.send_payloads(f"on{shard}", 0, b"x" * 1_000_000)
        address, processes = server.address, [server.pid, *children(server.pid)]
        server.kill()
        wait_until(lambda: not any(map(is_running, processes)), "the former processes let the port go")
        server.start(port=address.rsplit(":", 1)[1])
        early = first_connection(address)
        for shard in range(4):
            assert early.send_payloads(f"on{shard}", 0, b"first") == 1
        early.close()
        server.wait_ready()
    finally:
        server.kill()


def first_connection(address: str) -> WireConnection:
    """As soon as the port is there; it may have to wait for its first answer."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + 60
    while True:
        try:
            # From another address: a connection from the port to itself would be one, and keep the server from it.
            socket.create_connection((host, int(port)), source_address=("127.0.0.2", 0)).close()
            return WireConnection(address)
        except ConnectionRefusedError:
            assert time.monotonic() < end, "the port never opened"
