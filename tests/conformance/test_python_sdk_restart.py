"""The server goes away under the SDK and comes back on the same port: clients go on without being told."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Any

import pytest
from apache_iggy import AutoCommit, AutoCommitWhen, IggyClient, Partitioning, PollingStrategy, SendMessage

from shardserver.protocol.table import Command
from tests.conformance.site import Site, payloads
from tests.conformance.test_python_sdk_consumers import consumer, take


async def sent_at_last(site: Site, client: IggyClient, text: str, partition: int = 0) -> int:
    """Gives the offset. The SDK reports the request that a lost connection met, and connects again for the next one."""
    async with asyncio.timeout(40):
        while True:
            with suppress(RuntimeError):
                return await site.send(client, text, partition=partition)


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_a_client_sends_and_polls_on_after_a_restart(own_site: Site, killed: bool) -> None:
    site = own_site
    client = await site.topic()
    going_on = await site.connect(retries=100)
    await site.send(going_on, "before")
    site.tapped.end(killed=killed)
    waiting = asyncio.ensure_future(sent_at_last(site, going_on, "after"))
    await asyncio.to_thread(site.tapped.start_again)
    assert await waiting == 1
    assert payloads(await site.poll(going_on)) == ["before", "after"]
    assert len(site.exchanges(Command.LOGIN)) >= 3, " ".join(site.commands())
    del client


async def test_a_producer_goes_on_after_a_restart(own_site: Site) -> None:
    site = own_site
    client = await site.connect(retries=100)
    producer = await client.producer(site.stream, "t", partitioning=Partitioning.partition_id(0))
    await producer.send([SendMessage("before")])
    site.tapped.end(killed=True)
    waiting = asyncio.ensure_future(producer.send([SendMessage("after")]))
    await asyncio.to_thread(site.tapped.start_again)
    await waiting
    assert payloads(await site.poll(client)) == ["before", "after"]


async def take_over_a_loss(messages: Any) -> list[Any]:
    """The next message: the SDK says of the poll that the restart hit that it was disconnected, and goes on."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await take(messages, 1)
            except RuntimeError as error:
                assert "Disconnected" in str(error)


async def test_a_consumer_joins_again_and_goes_on_where_it_was(own_site: Site) -> None:
    site = own_site
    client = await site.connect(retries=100)
    await client.create_stream(site.stream)
    await client.create_topic(site.stream, "t", partitions_count=1)
    await site.send(client, "a", "b")
    mode = AutoCommit.When(AutoCommitWhen.ConsumingEachMessage())
    messages = (await consumer(site, client, auto_commit=mode)).iter_messages()
    assert payloads(await take(messages, 2)) == ["a", "b"]
    site.tapped.end(killed=False)
    await asyncio.to_thread(site.tapped.start_again)
    sender = await site.connect()
    await site.send(sender, "c")
    assert payloads(await take_over_a_loss(messages)) == ["c"]
    assert len(site.exchanges(Command.JOIN_GROUP)) >= 2


async def test_what_was_made_and_committed_is_there_after_a_kill(own_site: Site) -> None:
    site = own_site
    client = await site.topic(2)
    await site.send(client, "a", "b", partition=1)
    following = PollingStrategy.Next()
    assert payloads(await site.poll(client, following, 1, partition_id=1, auto_commit=True)) == ["a"]
    await site.poll(client)  # another request: the commit before it has been applied
    site.tapped.end(killed=False)
    await asyncio.to_thread(site.tapped.start_again)
    again = await site.connect()
    topic = await again.get_topic(site.stream, "t")
    assert topic is not None and topic.partitions_count == 2
    assert payloads(await site.poll(again, following, partition_id=1)) == ["b"]


async def test_a_shard_that_dies_alone_costs_a_client_a_delay(own_site: Site) -> None:
    site = own_site
    await site.topic(2)
    client = await site.connect(retries=100)
    for partition in range(2):
        await site.send(client, "before", partition=partition)
    site.tapped.server.kill_shard(site.tapped.cores - 1, signal.SIGKILL)
    for partition in range(2):
        assert await sent_at_last(site, client, "after", partition) == 1
        assert payloads(await site.poll(client, partition_id=partition)) == ["before", "after"]
