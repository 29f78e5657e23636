"""Shards that die, stand still, or go with their supervisor, under connections of all the others."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardserver.protocol.addresses import TopicAddress
from shardserver.protocol.table import Command
from tests.end_to_end.producers import Producer, check_stored, wait_for_more
from tests.sharded_server import ShardedServer, rule
from tests.supervisor.servers import children, is_running, wait_until

SHARDS = 3
CONFIG = "[net]\nhandover_requests = 0\n[server]\nstall_limit_s = 2\n" + "".join(
    rule("s", f"on{shard}", shard) for shard in range(SHARDS)
)
TOPICS = [f"on{shard}" for shard in range(SHARDS)]
PAYLOAD_BYTES = 300_000
# As it is stored: with the headers of a batch and of its one message (segment.md).
BATCH_BYTES = 256 + 48 + PAYLOAD_BYTES


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path_factory.mktemp("kills"), cores=SHARDS, config=CONFIG)
    try:
        with made.serve().connect() as connection:
            connection.create_stream("s")
        yield made
    finally:
        made.kill()


@pytest.fixture
def server(running: ShardedServer) -> Iterator[ShardedServer]:
    """With empty topics, each on the shard of its number."""
    with running.connect() as connection:
        for topic in TOPICS:
            connection.create_topic("s", topic, 1)
    yield running
    with running.connect() as connection:
        for topic in TOPICS:
            connection.ask(Command.DELETE_TOPIC, TopicAddress("s", topic))


def producers_on(
    server: ShardedServer, shards: list[int], topics: list[str] | None = None, **more: int
) -> list[Producer]:
    """One on each of these shards for each partition."""
    made = []
    for topic in topics or TOPICS:
        for shard, connection in enumerate(server.connect_each()):
            if shard in shards:
                made.append(Producer(connection, topic, **more))
            else:
                connection.close()
    return made


def stop_and_check(server: ShardedServer, producers: list[Producer], *, copies: int = 1) -> None:
    for one in producers:
        one.stop()
    with server.connect() as connection:
        check_stored(server, producers, copies=copies, read=lambda topic: connection.read_all(topic, 0))


def end_shard(server: ShardedServer, shard: int, number: signal.Signals) -> None:
    """And wait until its next process serves."""
    pid = server.kill_shard(shard, number)
    wait_until(lambda: not is_running(pid), "the shard is gone")
    server.wait_ready(other_than=pid)


@pytest.mark.parametrize("victim", range(SHARDS))
def test_a_shard_that_dies_again_and_again_is_but_a_delay_for_connections_of_others(
    server: ShardedServer, victim: int
) -> None:
    others = [shard for shard in range(SHARDS) if shard != victim]
    producers = producers_on(server, others)
    elsewhere = [one for one in producers if one.topic != TOPICS[victim]]
    doomed = []
    for _ in range(3):
        doomed += producers_on(server, [victim], [TOPICS[victim]])
        wait_for_more(producers)
        before = [len(one.acknowledged) for one in elsewhere]
        pid = server.kill_shard(victim)
        server.wait_ready(other_than=pid)
        after = [len(one.acknowledged) for one in elsewhere]
        assert all(x < y for x, y in zip(before, after, strict=True)), f"{before} at the kill, {after} at the restart"
        wait_for_more(producers)
    assert all(one.error for one in doomed)  # theirs died with it
    stop_and_check(server, producers + doomed)
    assert [one.error for one in producers] == [None] * len(producers)


def test_two_equal_batches_in_flight_are_two_messages_whenever_their_shard_dies(server: ShardedServer) -> None:
    chance = random.Random(5)
    producers = producers_on(server, [0, 2], copies=2, payload_bytes=3000)
    for _ in range(4):
        wait_for_more(producers, 1 + chance.randrange(20))
        end_shard(server, 1, signal.SIGKILL)
    wait_for_more(producers)
    stop_and_check(server, producers, copies=2)
    assert [one.error for one in producers] == [None] * len(producers)


def test_a_shard_that_stands_still_is_killed_and_clients_go_on(server: ShardedServer) -> None:
    producers = producers_on(server, [0, 2])
    wait_for_more(producers)
    end_shard(server, 1, signal.SIGSTOP)
    wait_for_more(producers)
    assert "shard_stalled" in server.log()
    stop_and_check(server, producers)
    assert [one.error for one in producers] == [None] * len(producers)


def test_after_kills_an_idle_arena_holds_the_batches_of_the_tail_and_nothing_else(server: ShardedServer) -> None:
    producers = producers_on(server, [0, 2], payload_bytes=PAYLOAD_BYTES)
    for victim in (1, 1):
        wait_for_more(producers, 5)
        end_shard(server, victim, signal.SIGKILL)
    wait_for_more(producers)
    for one in producers:
        one.stop()

    def beside_tail() -> list[int]:
        return [one["arena"]["blocks"] - one["log"]["tail_bytes"] // BATCH_BYTES for one in server.stats()]

    wait_until(lambda: max(beside_tail()) <= 0, "no block is left beside the batches of the tail")
    for one in server.stats():
        assert [(peer["questions"], peer["waiting"], peer["lent"]) for peer in one["peers"]] == [(0, 0, 0)] * 2


def test_a_killed_supervisor_takes_all_processes_along_and_leaves_no_shared_memory(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    server = ShardedServer(tmp_path, cores=SHARDS, config=CONFIG).serve()
    processes = [server.pid, *children(server.pid)]
    assert len(processes) > SHARDS
    server.kill()
    wait_until(lambda: not any(map(is_running, processes)), "all processes are gone")
    assert set(os.listdir("/dev/shm")) <= before
