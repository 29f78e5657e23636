"""The SDK's producer objects: direct, background, and with each way to choose a partition."""

from __future__ import annotations

import datetime

import pytest
import xxhash
from apache_iggy import (
    BackgroundProducerConfig,
    BackpressureMode,
    DirectProducerConfig,
    IggyExpiry,
    MaxTopicSize,
    Partitioning,
    PollingStrategy,
    ProducerSendError,
    ProducerSharding,
    SendMessage,
)

from shardserver.errors import Code
from shardserver.protocol.table import Command
from tests.conformance.site import Site, payloads

LINGER = datetime.timedelta(milliseconds=1)
BACKGROUND = {
    "defaults": BackgroundProducerConfig(),
    "at once": BackgroundProducerConfig(linger_time=datetime.timedelta(0), batch_length=1),
    "two workers": BackgroundProducerConfig(num_shards=2, max_in_flight=2, sharding=ProducerSharding.BALANCED),
    "blocking": BackgroundProducerConfig(failure_mode=BackpressureMode.block(), max_buffer_size=4096),
    "blocking for a while": BackgroundProducerConfig(
        failure_mode=BackpressureMode.block_with_timeout(datetime.timedelta(seconds=20)), max_buffer_size=4096
    ),
}


async def test_a_producer_makes_what_is_missing(site: Site) -> None:
    client = await site.connect()
    producer = await client.producer(
        site.stream, "t", topic_partitions_count=2, topic_message_expiry=IggyExpiry.NeverExpire(),
        topic_max_size=MaxTopicSize.Unlimited(), partitioning=Partitioning.partition_id(1),
    )  # fmt: skip
    await producer.send_one(SendMessage("a"))
    assert payloads(await site.poll(client, partition_id=1)) == ["a"]
    assert [one.command for one in site.tap.log if one.command.startswith(("GET_", "CREATE_"))][1:] == [
        Command.GET_STREAM.name, Command.CREATE_STREAM.name, Command.GET_TOPIC.name, Command.CREATE_TOPIC.name,
    ]  # fmt: skip
    await producer.shutdown()


async def test_a_producer_that_may_make_nothing_says_what_is_missing(site: Site) -> None:
    client = await site.connect()
    with pytest.raises(RuntimeError):
        await client.producer(site.stream, "t", create_stream_if_not_exists=False)
    await client.create_stream(site.stream)
    with pytest.raises(RuntimeError):
        await client.producer(site.stream, "t", create_topic_if_not_exists=False)
    assert not site.exchanges(Command.CREATE_TOPIC)


@pytest.mark.parametrize("batch_length", [1, 3, 1000])
async def test_a_direct_producer_sends_in_batches_of_its_length(site: Site, batch_length: int) -> None:
    client = await site.topic()
    mode = DirectProducerConfig(batch_length=batch_length, linger_time=datetime.timedelta(0))
    producer = await client.producer(site.stream, "t", partitioning=Partitioning.partition_id(0), mode=mode)
    response = await producer.send([SendMessage(str(n)) for n in range(7)])
    assert payloads(await site.poll(client)) == [str(n) for n in range(7)]
    assert len(site.exchanges(Command.SEND_MESSAGES)) == -(-7 // batch_length) == len(response.confirmations)


@pytest.mark.parametrize("mode", BACKGROUND.values(), ids=BACKGROUND.keys())
async def test_a_background_producer_has_sent_everything_after_its_shutdown(
    site: Site, mode: BackgroundProducerConfig
) -> None:
    client = await site.topic()
    partition = Partitioning.partition_id(0)
    async with await client.producer(site.stream, "t", partitioning=partition, mode=mode) as producer:
        for n in range(50):
            await producer.send_one(SendMessage(str(n)))
    found = payloads(await site.poll(client))
    assert sorted(map(int, found)) == list(range(50))
    if mode.sharding == ProducerSharding.ORDERED:
        assert found == [str(n) for n in range(50)]


async def test_a_balanced_producer_fills_all_partitions(site: Site) -> None:
    client = await site.topic(3)
    producer = await client.producer(site.stream, "t", partitioning=Partitioning.balanced())
    for n in range(6):
        await producer.send([SendMessage(str(n))])
    found = [payloads(await site.poll(client, partition_id=partition)) for partition in range(3)]
    assert sorted(map(len, found)) == [2, 2, 2]


async def test_a_key_producer_keeps_a_keys_messages_together(site: Site) -> None:
    client = await site.topic(3)
    producer = await client.producer(site.stream, "t", partitioning=Partitioning.messages_key("kunde"))
    await producer.send([SendMessage("a")])
    await producer.send_with_partitioning([SendMessage("b")], Partitioning.messages_key("kunde"))
    await producer.send_with_partitioning([SendMessage("c")], None)
    due = xxhash.xxh32_intdigest(b"kunde") % 3
    assert payloads(await site.poll(client, partition_id=due)) == ["a", "b", "c"]


async def test_a_producer_sends_to_another_topic_when_told(site: Site) -> None:
    client = await site.topic(name="other")
    producer = await client.producer(site.stream, "t", partitioning=Partitioning.partition_id(0))
    await producer.send_to(site.stream, "other", [SendMessage("there")], Partitioning.partition_id(0))
    await producer.send([SendMessage("here")])
    topics = {one.name: one.messages_count for one in await client.get_topics(site.stream)}
    assert topics == {"other": 1, "t": 1}


async def test_a_producer_whose_topic_is_gone_reports_what_it_did_not_send(site: Site) -> None:
    client = await site.topic()
    producer = await client.producer(
        site.stream, "t", partitioning=Partitioning.partition_id(0), send_retries=1,
        send_retry_interval=datetime.timedelta(milliseconds=1),
    )  # fmt: skip
    await client.delete_topic(site.stream, "t")
    with pytest.raises(ProducerSendError) as failure:
        await producer.send([SendMessage("a"), SendMessage("b")])
    assert len(failure.value.failed) == 2 and not failure.value.committed
    assert {one.code for one in site.exchanges(Command.SEND_MESSAGES)} == {Code.TOPIC_NOT_FOUND}


async def test_a_closed_producer_sends_no_more(site: Site) -> None:
    client = await site.topic()
    producer = await client.producer(
        site.stream, "t", partitioning=Partitioning.partition_id(0), mode=BACKGROUND["defaults"]
    )
    await producer.shutdown()
    with site.client_refuses():
        await producer.send_one(SendMessage("late"))


async def test_many_producers_at_a_time_lose_nothing(site: Site) -> None:
    client = await site.topic(2)
    for number in range(4):
        partition = Partitioning.partition_id(number % 2)
        async with await client.producer(
            site.stream, "t", partitioning=partition, mode=BackgroundProducerConfig(linger_time=LINGER)
        ) as producer:
            for n in range(100):
                await producer.send_one(SendMessage(f"{number}/{n}"))
    for partition in range(2):
        found = payloads(await site.poll(client, PollingStrategy.First(), 1000, partition_id=partition))
        assert [text for text in found if text.startswith(f"{partition}/")] == [f"{partition}/{n}" for n in range(100)]
        assert len(found) == 200
