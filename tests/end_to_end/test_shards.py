"""Four shards: where partitions and connections are; every command from each shard for partitions on each shard."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apache_iggy import SendMessage

from shardserver.client.connection import RequestRefusedError
from shardserver.protocol.addresses import CONSUMER_SINGLE, PartitionAddress, StreamAddress, TopicAddress
from shardserver.protocol.clients import GetClientRequest
from shardserver.protocol.messages import FIRST, LAST, NEXT
from shardserver.protocol.offsets import ACK_COMMITTED, DeleteOffsetRequest, StoreOffsetRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import DeleteSegmentsRequest, PartitionsRequest
from tests import sdk_client
from tests.sharded_server import ShardedServer, rule
from tests.wire_connection import CONSUMER, WireConnection

SHARDS = 4
BY_TIMESTAMP = 2
CONFIG = "[net]\nhandover_requests = 0\n" + "".join(rule("s*", f"on{shard}*", shard) for shard in range(SHARDS))
SEGMENT_BYTES = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path_factory.mktemp("shards"), cores=SHARDS, config=CONFIG)
    try:
        yield made.serve()
    finally:
        made.kill()


@pytest.fixture(scope="module")
def connections(server: ShardedServer) -> Iterator[list[WireConnection]]:
    """One on each shard, in their order."""
    made = server.connect_each()
    made[0].create_stream("s")
    yield made
    for one in made:
        one.close()


@pytest.fixture
def fresh_topics(connections: list[WireConnection]) -> Iterator[list[str]]:
    """One topic with two partitions on each shard, in their order."""
    names = [f"on{shard}" for shard in range(SHARDS)]
    for name in names:
        connections[0].create_topic("s", name, 2, {"segment_size": SEGMENT_BYTES})
    yield names
    for topic in connections[0].ask(Command.GET_TOPICS, StreamAddress("s")).topics:
        connections[0].ask(Command.DELETE_TOPIC, TopicAddress("s", topic.name))


def pairs(connections: list[WireConnection], topics: list[str]) -> Iterator[tuple[WireConnection, int, str]]:
    """Each connection with each topic: the connection, the number of its shard, the topic."""
    for shard, connection in enumerate(connections):
        for topic in topics:
            yield connection, shard, topic


# Partitions


def test_partitions_are_where_rules_say_as_the_running_and_the_stopped_server_tell(tmp_path: Path) -> None:
    server = ShardedServer(tmp_path, cores=SHARDS, config=CONFIG)
    try:
        with server.serve().connect() as connection:
            connection.create_stream("s")
            for shard in range(SHARDS):
                connection.create_topic("s", f"on{shard}", shard + 1)
            connection.create_topic("s", "anywhere", SHARDS * 2)
        running = json.loads(server.command("placement", "--json").stdout)
        stats = {(row["uid"], one["shard"]) for one in server.stats() for row in one["partitions"]}
        assert server.stop() == 0
        stopped = json.loads(server.command("placement", "--json").stdout)
    finally:
        server.kill()
    rows = running["partitions"]
    assert stopped == running and running["shards"] == SHARDS
    assert {(row["uid"], row["shard"]) for row in rows} == stats
    named = Counter((row["topic"], row["shard"]) for row in rows if row["topic"].startswith("on"))
    assert named == {(f"on{shard}", shard): shard + 1 for shard in range(SHARDS)}
    # balanced: the topic without a rule evens out what the rules have made uneven
    counts = Counter(row["shard"] for row in rows)
    assert sorted(counts.values()) == [4, 4, 5, 5]


# Connections


@pytest.mark.parametrize("at_once", [False, True])
def test_sixteen_connections_end_as_four_on_each_shard(server: ShardedServer, *, at_once: bool) -> None:
    before = [one["connections"] for one in server.stats()]
    with ThreadPoolExecutor(16) as pool:
        made = [pool.submit(server.connect) for _ in range(16)] if at_once else []
        clients = [one.result() for one in made] or [server.connect() for _ in range(16)]
    try:
        after = [one["connections"] for one in server.stats()]
        listed = clients[0].ask(Command.GET_CLIENTS).clients
        held = Counter(one.shard for one in clients)
    finally:
        for one in clients:
            one.close()
    assert sum(after) == sum(before) + 16 == len(listed)
    assert max(after) - min(after) <= 1, f"{before} before, {after} after"
    assert Counter(one.client_id & 0xFF for one in listed) == dict(enumerate(after))
    assert held == {shard: after[shard] - before[shard] for shard in range(SHARDS)}


def test_a_new_topic_is_known_at_once_on_every_shard(server: ShardedServer, connections: list[WireConnection]) -> None:
    for round_number in range(10):
        topic = f"at-once-{round_number}"
        connections[round_number % SHARDS].create_topic("s", topic, SHARDS)
        fresh = server.connect_each()
        for shard, connection in enumerate([*fresh, *connections]):
            for partition in range(SHARDS):
                assert connection.send_payloads(topic, partition, b"x") == shard
        for connection in fresh:
            connection.close()
        connections[(round_number + 1) % SHARDS].ask(Command.DELETE_TOPIC, TopicAddress("s", topic))
        for connection in connections:
            with pytest.raises(RequestRefusedError) as refused:
                connection.send_payloads(topic, 0, b"x")
            assert refused.value.code == 2010


def test_clients_and_figures_are_those_of_all_shards_wherever_they_are_asked(
    server: ShardedServer, connections: list[WireConnection], fresh_topics: list[str]
) -> None:
    for topic in fresh_topics:
        connections[0].send_payloads(topic, 1, b"one", b"two", b"three")
    own = [connection.ask(Command.GET_ME).info for connection in connections]
    statistics = [connection.ask(Command.GET_STATS) for connection in connections]
    for connection in connections:
        listed = connection.ask(Command.GET_CLIENTS).clients
        assert {one.client_id for one in own} <= {one.client_id for one in listed}
        assert [connection.ask(Command.GET_CLIENT, GetClientRequest(one.client_id)).info for one in own] == own
        assert connection.ask(Command.GET_CLIENT, GetClientRequest(0xFFFFFF00)) is None
    told = {(one.partitions_count, one.messages_count, one.topics_count, one.clients_count) for one in statistics}
    assert told == {(2 * SHARDS, 3 * SHARDS, SHARDS, len(listed))}


# Data


def test_every_strategy_reads_from_every_shard(connections: list[WireConnection], fresh_topics: list[str]) -> None:
    for topic in fresh_topics:
        sent: list[bytes] = []
        for shard, connection in enumerate(connections):
            batch = [f"{topic}/{shard}/{number}".encode() for number in range(4)]
            assert connection.send_payloads(topic, 0, *batch) == len(sent)
            sent += batch
        for connection in connections:
            assert connection.payloads(topic, 0, FIRST) == sent
            assert connection.payloads(topic, 0, value=8) == sent[8:]
            assert connection.payloads(topic, 0, LAST, count=4) == sent[-4:]
            assert connection.payloads(topic, 0, BY_TIMESTAMP) == sent
            assert connection.payloads(topic, 0, value=len(sent)) == []
            assert connection.payloads(topic, 1, FIRST) == []
            assert connection.payloads(topic, 0, NEXT) == sent
        for number, connection in enumerate(connections):
            assert connection.payloads(topic, 0, NEXT, count=4, auto_commit=True) == sent[4 * number : 4 * number + 4]


def test_the_sdk_reads_on_every_shard_what_it_sent_to_every_shard(
    server: ShardedServer, fresh_topics: list[str]
) -> None:
    async def run() -> None:
        clients = [await sdk_client.connect(server.address) for _ in range(2 * SHARDS)]
        assert {await sdk_client.shard_of(client) for client in clients} == set(range(SHARDS))
        sent = [f"{number}" for number in range(len(clients))]
        for topic in fresh_topics:
            for client, text in zip(clients, sent, strict=True):
                await client.send_messages("s", topic, 1, [SendMessage(text)])
            for client in clients:
                found = [one.decode() async for one in sdk_client.payloads(client, "s", topic, 1)]
                assert found == sent
                details = await client.get_topic("s", topic)
                assert details.messages_count == len(sent)

    asyncio.run(run())


def test_offsets_are_stored_read_and_deleted_from_every_shard(
    connections: list[WireConnection], fresh_topics: list[str]
) -> None:
    for topic in fresh_topics:
        connections[0].send_payloads(topic, 0, *[b"x"] * SHARDS)
    for connection, shard, topic in pairs(connections, fresh_topics):
        address = PartitionAddress(CONSUMER_SINGLE, CONSUMER, "s", topic, 0)
        connection.ask(Command.STORE_OFFSET, StoreOffsetRequest(address, shard, ACK_COMMITTED))
        for asked in connections:
            found = asked.ask(Command.GET_OFFSET, address)
            assert (found.current_offset, found.stored_offset) == (SHARDS - 1, shard)
        with pytest.raises(RequestRefusedError) as refused:
            connection.ask(Command.STORE_OFFSET, StoreOffsetRequest(address, SHARDS, ACK_COMMITTED))
        assert refused.value.code == 4100
        connections[(shard + 1) % SHARDS].ask(Command.DELETE_OFFSET, DeleteOffsetRequest(address, ACK_COMMITTED))
        assert [asked.ask(Command.GET_OFFSET, address) for asked in connections] == [None] * SHARDS


def test_figures_of_a_topic_are_those_of_its_owner(connections: list[WireConnection], fresh_topics: list[str]) -> None:
    for number, topic in enumerate(fresh_topics):
        connections[-1].send_payloads(topic, 1, *[b"x"] * (number + 1))
    for connection, _, topic in pairs(connections, fresh_topics):
        count = fresh_topics.index(topic) + 1
        found = connection.ask(Command.GET_TOPIC, TopicAddress("s", topic))
        assert [one.messages_count for one in found.partitions] == [0, count] and found.header.messages_count == count
        assert found.partitions[1].current_offset == count - 1 and found.partitions[1].size_bytes > 256


def test_purges_and_deletes_of_partitions_reach_every_shard(
    connections: list[WireConnection], fresh_topics: list[str]
) -> None:
    for connection, _, topic in pairs(connections, fresh_topics):
        connection.send_payloads(topic, 0, b"before")
        connection.ask(Command.PURGE_TOPIC, TopicAddress("s", topic))
        assert [asked.payloads(topic, 0, FIRST) for asked in connections] == [[]] * SHARDS
        assert connection.send_payloads(topic, 0, b"after") >= 0
        assert [asked.payloads(topic, 0, LAST, count=1) for asked in connections] == [[b"after"]] * SHARDS
        connection.ask(Command.CREATE_PARTITIONS, PartitionsRequest("s", topic, 1))
        assert connection.send_payloads(topic, 2, b"x") == 0
        connection.ask(Command.DELETE_PARTITIONS, PartitionsRequest("s", topic, 1))
        for asked in connections:
            with pytest.raises(RequestRefusedError) as refused:
                asked.send_payloads(topic, 2, b"x")
            assert refused.value.code == 3007
        connection.ask(Command.PURGE_STREAM, StreamAddress("s"))


def segments_count(connection: WireConnection, topic: str) -> int:
    return connection.ask(Command.GET_TOPIC, TopicAddress("s", topic)).partitions[0].segments_count


def test_sealed_segments_are_deleted_from_every_shard(
    connections: list[WireConnection], fresh_topics: list[str]
) -> None:
    payload = b"x" * (SEGMENT_BYTES // 3)
    for topic in fresh_topics:
        # How many sends fill a segment depends on how long the next one takes to make: some go through the journal.
        while segments_count(connections[0], topic) <= SHARDS:
            connections[0].send_payloads(topic, 0, payload)
    for connection, shard, topic in pairs(connections, fresh_topics):
        before = segments_count(connection, topic)
        connection.ask(Command.DELETE_SEGMENTS, DeleteSegmentsRequest("s", topic, 0, 1))
        after = [asked.ask(Command.GET_TOPIC, TopicAddress("s", topic)).partitions[0] for asked in connections]
        assert {one.segments_count for one in after} == {before - 1}, f"shard {shard}, {topic}"
        assert len({one.messages_count for one in after}) == 1


def test_streams_are_deleted_from_every_shard(connections: list[WireConnection]) -> None:
    for shard, connection in enumerate(connections):
        connections[(shard + 1) % SHARDS].create_stream("short-lived")
        for topic in range(SHARDS):
            connection.create_topic("short-lived", f"on{topic}", 1)
            connection.send_payloads(f"on{topic}", 0, b"x", stream="short-lived")
        connection.delete_stream("short-lived")
        for asked in connections:
            assert asked.ask(Command.GET_STREAM, StreamAddress("short-lived")) is None
