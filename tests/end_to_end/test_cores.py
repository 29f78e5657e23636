"""The same data under other numbers of cores and other rules: messages, committed offsets, and where it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardserver.protocol.addresses import CONSUMER_SINGLE, PartitionAddress
from shardserver.protocol.offsets import ACK_COMMITTED, StoreOffsetRequest
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer, rule
from tests.supervisor.servers import wait_until
from tests.wire_connection import CONSUMER, WireConnection

TOPICS, PARTITIONS = ("a", "b"), 3
PLACES = [(topic, partition) for topic in TOPICS for partition in range(PARTITIONS)]
SEGMENT_BYTES = 1 << 20
Content = dict[tuple[str, int], list[bytes]]


def address(topic: str, partition: int) -> PartitionAddress:
    return PartitionAddress(CONSUMER_SINGLE, CONSUMER, "s", topic, partition)


def add(connection: WireConnection, content: Content, life: int) -> None:
    """Small and large batches to every partition, and a consumer that has read half of it."""
    for topic, partition in PLACES:
        known = content.setdefault((topic, partition), [])
        for number in range(4):
            batch = [f"{life}/{topic}{partition}/{number}/{one} ".encode() for one in range(3)]
            batch[0] = batch[0].ljust((300, 400_000)[number % 2], b"x")
            assert connection.send_payloads(topic, partition, *batch) == len(known)
            known += batch
        place = address(topic, partition)
        connection.ask(Command.STORE_OFFSET, StoreOffsetRequest(place, len(known) // 2 + partition, ACK_COMMITTED))


def check(connection: WireConnection, content: Content) -> None:
    for (topic, partition), sent in content.items():
        assert connection.read_all(topic, partition) == sent, f"{topic}/{partition}"
        found = connection.ask(Command.GET_OFFSET, address(topic, partition))
        expected = (len(sent) - 1, len(sent) // 2 + partition)
        assert (found.current_offset, found.stored_offset) == expected, f"{topic}/{partition}"


def shards_of(server: ShardedServer, topic: str) -> set[int]:
    return {server.shard_of("s", topic, partition) for partition in range(PARTITIONS)}


def directories(server: ShardedServer) -> set[str]:
    """Of shards, those that are gone must not be among them."""
    return {one.name for one in (server.data / "shards").iterdir()}


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_fewer_and_more_cores_and_other_rules_leave_data_and_offsets_as_they_are(tmp_path: Path, ending: str) -> None:
    server, content = ShardedServer(tmp_path, cores=3), Content()
    lives = (
        (3, "", {0, 1, 2}, {0, 1, 2}),
        (1, "", {0}, {0}),
        (2, "", {0}, {0}),  # more cores move nothing
        (2, rule("s", "a", 1), {1}, {0}),
        (3, rule("s", "b", 2) + rule("s", "*", 0, 1), {1}, {2}),
    )
    try:
        for life, (cores, rules, shards_of_a, shards_of_b) in enumerate(lives):
            server.cores, server.config = cores, rules
            server.serve()
            assert directories(server) == {str(number) for number in range(cores)}
            with server.connect() as connection:
                if life == 0:
                    connection.create_stream("s")
                    for topic in TOPICS:
                        connection.create_topic("s", topic, PARTITIONS, {"segment_size": SEGMENT_BYTES})
                assert (shards_of(server, "a"), shards_of(server, "b")) == (shards_of_a, shards_of_b)
                check(connection, content)
                add(connection, content, life)
                check(connection, content)
            getattr(server, ending)()
    finally:
        server.kill()


def test_more_cores_get_their_part_when_the_configuration_spreads_partitions(tmp_path: Path) -> None:
    """While the server serves, and a client goes on."""
    server, content = ShardedServer(tmp_path, cores=1), Content()
    try:
        with server.serve().connect() as connection:
            connection.create_stream("s")
            for topic in TOPICS:
                connection.create_topic("s", topic, PARTITIONS, {"segment_size": SEGMENT_BYTES})
            add(connection, content, 0)
        server.stop()
        server.cores, server.config = 3, "[placement]\nspread = true\n"
        with server.serve().connect() as connection:

            def counts() -> list[int]:
                places = [server.shard_of("s", topic, partition) for topic, partition in PLACES]
                return [places.count(shard) for shard in range(3)]

            wait_until(lambda: counts() == [2, 2, 2], "each shard has its part")
            check(connection, content)
            add(connection, content, 1)
            check(connection, content)
        server.stop()
        server.config = ""
        with server.serve().connect() as connection:
            check(connection, content)
        server.stop()
    finally:
        server.kill()
