"""More partitions than descriptors: refused when they are made, not when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardserver.client.connection import RequestRefusedError
from shardserver.protocol.addresses import TopicAddress
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

TOO_MANY_PARTITIONS = 2015
PARTITIONS_A_TOPIC = 700
CONFIG = "[net]\nmax_connections = 32\n[storage]\nopen_segments = 16\n"
# Two shards with at most 1200 descriptors each: three topics fit, a fourth does not.
WRAPPER = ("sh", "-c", 'ulimit -n 1200 && exec "$@"', "sh")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=2, config=CONFIG, wrapper=WRAPPER)
    try:
        yield made.serve()
    finally:
        made.kill()


def fill(connection: WireConnection) -> list[str]:
    """Topics until one is refused; gives the names of those that were made."""
    made: list[str] = []
    while len(made) < 10:
        name = f"t{len(made)}"
        try:
            connection.create_topic("s", name, PARTITIONS_A_TOPIC)
        except RequestRefusedError as refused:
            assert refused.code == TOO_MANY_PARTITIONS
            return made
        made.append(name)
    raise AssertionError("no limit")


def use_all(connection: WireConnection, topics: list[str]) -> None:
    for topic in topics:
        for partition in range(PARTITIONS_A_TOPIC):
            connection.send_payloads(topic, partition, b"x")


def test_partitions_beyond_the_limit_are_refused_and_deleting_makes_room(server: ShardedServer) -> None:
    with server.connect() as connection:
        connection.create_stream("s")
        topics = fill(connection)
        assert topics == ["t0", "t1", "t2"]
        use_all(connection, topics)
        connection.ask(Command.DELETE_TOPIC, TopicAddress("s", topics[0]))
        connection.create_topic("s", "again", PARTITIONS_A_TOPIC)
        use_all(connection, ["again"])
    server.kill()
    server.serve()
    with server.connect() as connection:
        assert connection.send_payloads("again", PARTITIONS_A_TOPIC - 1, b"x") == 1
        with pytest.raises(RequestRefusedError) as refused:
            connection.create_topic("s", "one-more", PARTITIONS_A_TOPIC)
        assert refused.value.code == TOO_MANY_PARTITIONS
