"""Sends, polls and stored offsets by the SDK's low-level methods, and with our codecs where it has none."""

from __future__ import annotations

import pytest
import xxhash
from apache_iggy import Consumer, HeaderKey, HeaderValue, Partitioning, PollingStrategy, SendMessage

from shardserver.errors import Code
from shardserver.protocol import primitives as wire
from shardserver.protocol.addresses import CONSUMER_SINGLE, PartitionAddress
from shardserver.protocol.messages import FlushRequest, PollRequest, SendRequest
from shardserver.protocol.offsets import DeleteOffsetRequest, StoreOffsetRequest
from shardserver.protocol.table import Command
from tests.batches import make_batch
from tests.conformance.site import Site, payloads

KIND_BALANCED, KIND_PARTITION, KIND_KEY = 1, 2, 3
HEADERS = {
    HeaderKey.String("text"): HeaderValue.String("ä"),
    HeaderKey.String("raw"): HeaderValue.Raw(b"\x00\xff"),
    HeaderKey.String("bool"): HeaderValue.Bool(True),
    HeaderKey.String("i8"): HeaderValue.Int8(-1),
    HeaderKey.String("i16"): HeaderValue.Int16(-2),
    HeaderKey.String("i32"): HeaderValue.Int32(-3),
    HeaderKey.String("i64"): HeaderValue.Int64(-4),
    HeaderKey.String("i128"): HeaderValue.Int128(-(1 << 100)),
    HeaderKey.String("u8"): HeaderValue.UnsignedInt8(255),
    HeaderKey.String("u16"): HeaderValue.UnsignedInt16(65535),
    HeaderKey.String("u32"): HeaderValue.UnsignedInt32(1),
    HeaderKey.UnsignedInt64(7): HeaderValue.UnsignedInt64(1 << 63),
    HeaderKey.Raw(b"\x01"): HeaderValue.UnsignedInt128(1 << 100),
    HeaderKey.Bool(False): HeaderValue.Float32(0.5),
    HeaderKey.String("f64"): HeaderValue.Float64(0.1),
}


def address(site: Site, partition: int | None = 0, consumer: int | str = 1) -> PartitionAddress:
    return PartitionAddress(CONSUMER_SINGLE, consumer, site.stream, "t", partition)


async def test_a_send_is_confirmed_with_its_place(site: Site) -> None:
    client = await site.topic(2)
    assert await site.send(client, "a", "b", partition=1) == 0
    response = await client.send_messages(site.stream, "t", 1, [SendMessage("c")])
    (one,) = response.confirmations
    stream = await client.get_stream(site.stream)
    assert stream is not None
    assert (one.stream_id, one.topic_id, one.partition_id, one.base_offset) == (stream.id, 0, 1, 2)


async def test_a_message_comes_back_as_it_was_sent(site: Site) -> None:
    client = await site.topic()
    await client.send_messages(site.stream, "t", 0, [SendMessage(b"\x00\xff", user_headers=HEADERS, id=1 << 100)])
    (message,) = await site.poll(client)
    assert bytes(message.payload()) == b"\x00\xff" and message.length() == 2
    assert message.id() == 1 << 100 and message.offset() == 0 and message.partition_id() == 0
    assert message.user_headers() == HEADERS
    assert message.timestamp() > 0 and message.origin_timestamp() > 0 and message.checksum() > 0


async def test_messages_without_an_id_get_one_from_the_client(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a", "b")
    first, second = await site.poll(client)
    assert first.id() and second.id() and first.id() != second.id()
    assert first.timestamp() == second.timestamp()  # of their batch


async def test_every_strategy_starts_where_it_should(site: Site) -> None:
    client = await site.topic()
    sent = [f"m{n}" for n in range(9)]
    for start in 0, 3, 6:
        await site.send(client, *sent[start : start + 3])
    stamp = (await site.poll(client))[4].timestamp()
    for strategy, count, due in [
        (PollingStrategy.First(), 2, sent[:2]),
        (PollingStrategy.Offset(4), 3, sent[4:7]),
        (PollingStrategy.Offset(9), 3, []),
        (PollingStrategy.Last(), 4, sent[5:]),
        (PollingStrategy.Last(), 100, sent),
        (PollingStrategy.Timestamp(stamp), 100, sent[3:]),
        (PollingStrategy.Timestamp(stamp + 10**12), 100, []),
        (PollingStrategy.Next(), 2, sent[:2]),
    ]:
        assert payloads(await site.poll(client, strategy, count)) == due, strategy


async def test_next_goes_on_after_what_was_committed(site: Site) -> None:
    client = await site.topic()
    await site.send(client, *"abcdef")
    following = PollingStrategy.Next()
    assert payloads(await site.poll(client, following, 2, auto_commit=True)) == ["a", "b"]
    assert payloads(await site.poll(client, following, 2)) == ["c", "d"]
    assert payloads(await site.poll(client, following, 2, auto_commit=True)) == ["c", "d"]
    assert payloads(await site.poll(client, PollingStrategy.First(), 1, auto_commit=True)) == ["a"]  # never back
    assert payloads(await site.poll(client, following, 9)) == ["e", "f"]


async def test_consumers_have_offsets_of_their_own(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a", "b")
    for consumer in Consumer.Single(1), Consumer.Single("reader"), Consumer.Single(2):
        found = await site.poll(client, PollingStrategy.Next(), 1, consumer=consumer, auto_commit=True)
        assert payloads(found) == ["a"]
    number = xxhash.xxh32_intdigest(b"reader")
    assert payloads(await site.poll(client, PollingStrategy.Next(), consumer=Consumer.Single(number))) == ["b"]


async def test_a_poll_without_a_partition_reads_partition_0(site: Site) -> None:
    client = await site.topic(2)
    await site.send(client, "zero", partition=0)
    assert payloads(await site.poll(client, partition_id=None)) == ["zero"]


@pytest.mark.parametrize("payload_bytes", [1, 511, 512, 4096, 1 << 20, 5 << 20])
async def test_payloads_of_any_size_come_back(site: Site, payload_bytes: int) -> None:
    client = await site.topic()
    payload = bytes(n % 251 for n in range(1009)) * (payload_bytes // 1009 + 1)
    await client.send_messages(site.stream, "t", 0, [SendMessage(payload[:payload_bytes])])
    (message,) = await site.poll(client)
    assert bytes(message.payload()) == payload[:payload_bytes]


async def test_a_key_always_chooses_the_partition_of_its_hash(site: Site) -> None:
    client = await site.topic(3)
    for key in "a", "b", "kunde", b"\x00":
        response = await client.send_messages(site.stream, "t", Partitioning.messages_key(key), [SendMessage("m")])
        raw = key if isinstance(key, bytes) else key.encode()
        assert response.confirmations[0].partition_id == xxhash.xxh32_intdigest(raw) % 3


async def test_balanced_sends_go_round(site: Site) -> None:
    client = await site.topic(3)
    chosen = []
    for _ in range(6):
        response = await client.send_messages(site.stream, "t", Partitioning.balanced(), [SendMessage("m")])
        chosen.append(response.confirmations[0].partition_id)
    assert chosen == [0, 1, 2, 0, 1, 2]


async def test_the_server_resolves_keys_and_rounds_of_clients_that_do_not(site: Site) -> None:
    client = await site.topic(3)
    batch = bytes(make_batch([b"m"]))
    chosen = []
    for _ in range(4):
        reply = await site.ask(
            client, Command.SEND_MESSAGES, SendRequest(site.stream, "t", KIND_BALANCED, b"", 1, batch)
        )
        chosen.append(reply.confirmations[0].partition_id)
    assert chosen == [0, 1, 2, 0]
    reply = await site.ask(client, Command.SEND_MESSAGES, SendRequest(site.stream, "t", KIND_KEY, b"kunde", 1, batch))
    assert reply.confirmations[0].partition_id == xxhash.xxh32_intdigest(b"kunde") % 3


async def test_sends_that_cannot_be_resolved_have_the_precise_code(site: Site) -> None:
    client = await site.topic()
    await client.create_topic(site.stream, "none", partitions_count=0)
    for stream, topic, partition, code in [
        ("missing", "t", 0, Code.STREAM_NOT_FOUND),
        (site.stream, "missing", 0, Code.TOPIC_NOT_FOUND),
        (site.stream, "t", 1, Code.PARTITION_NOT_FOUND),
        (site.stream, "none", 0, Code.NO_PARTITIONS),
    ]:
        with site.refuses(code):
            await client.send_messages(stream, topic, partition, [SendMessage("x")])


async def test_polls_that_cannot_be_resolved_have_their_code(site: Site) -> None:
    client = await site.topic()
    with site.refuses(Code.PARTITION_NOT_FOUND):
        await site.poll(client, partition_id=1)
    await client.delete_topic(site.stream, "t")
    with site.refuses(Code.TOPIC_NOT_FOUND):
        await site.poll(client)
    await client.delete_stream(site.stream)
    with site.refuses(Code.STREAM_NOT_FOUND):
        await site.poll(client)


@pytest.mark.parametrize(
    ("position", "code"),
    [(-1, Code.INVALID_MESSAGE_CHECKSUM), (40, Code.INVALID_BATCH_CHECKSUM), (60, Code.INVALID_COMMAND)],
)
async def test_a_damaged_batch_is_refused_at_once(site: Site, position: int, code: Code) -> None:
    client, batch = await site.topic(), make_batch([b"m"])
    batch[position] ^= 1
    with site.refuses(code):
        request = SendRequest(site.stream, "t", KIND_PARTITION, wire.u32(0), 1, bytes(batch))
        await site.ask(client, Command.SEND_MESSAGES, request)
    assert await site.send(client, "after") == 0


async def test_malformed_sends_and_polls_are_refused(site: Site) -> None:
    client, batch = await site.topic(), bytes(make_batch([b"m"]))
    with site.refuses(Code.INVALID_COMMAND):  # the count is not the batch's
        request = SendRequest(site.stream, "t", KIND_PARTITION, wire.u32(0), 2, batch)
        await site.ask(client, Command.SEND_MESSAGES, request)
    with site.refuses(Code.INVALID_KEY_LENGTH):
        await site.ask(client, Command.SEND_MESSAGES, SendRequest(site.stream, "t", KIND_KEY, b"", 1, batch))
    with site.refuses(Code.INVALID_COMMAND):
        await site.ask(client, Command.POLL_MESSAGES, PollRequest(address(site), 9, 0, 1, False))
    for command in Command.POLL_MESSAGES, Command.SEND_MESSAGES, Command.STORE_OFFSET:
        with site.refuses(Code.INVALID_COMMAND):
            await client.send_binary_request(int(command), b"\x01")


async def test_the_client_refuses_an_empty_payload_and_no_messages(site: Site) -> None:
    client = await site.topic()
    with site.client_refuses():
        await client.send_messages(site.stream, "t", 0, [])
    with site.client_refuses():
        await client.send_messages(site.stream, "t", 0, [SendMessage("")])


async def test_a_poll_of_no_messages_is_empty_where_the_client_lets_it_through(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a")
    with site.client_refuses():
        await site.poll(client, count=0)
    reply = await site.ask(client, Command.POLL_MESSAGES, PollRequest(address(site), 1, 0, 0, False))
    assert reply.count == 0 and not reply.batches


async def test_an_empty_poll_has_16_bytes(site: Site) -> None:
    client = await site.topic()
    body = PollRequest(address(site), 1, 0, 10, True).encode()
    assert bytes(await client.send_binary_request(int(Command.POLL_MESSAGES), body)) == bytes(16)
    assert await site.ask(client, Command.GET_OFFSET, address(site)) is None  # nor has it committed anything


async def test_a_stored_offset_is_set_exactly_even_backwards(site: Site) -> None:
    client = await site.topic()
    await site.send(client, *"abcd")
    assert await site.ask(client, Command.GET_OFFSET, address(site)) is None
    for offset, ack in (2, 1), (0, 0):
        await site.ask(client, Command.STORE_OFFSET, StoreOffsetRequest(address(site), offset, ack))
        found = await site.ask(client, Command.GET_OFFSET, address(site))
        assert (found.partition, found.current_offset, found.stored_offset) == (0, 3, offset)
    await site.ask(client, Command.DELETE_OFFSET, DeleteOffsetRequest(address(site), 1))
    assert await site.ask(client, Command.GET_OFFSET, address(site)) is None


async def test_offset_errors_have_their_codes(site: Site) -> None:
    client = await site.topic()
    with site.refuses(Code.CONSUMER_OFFSET_NOT_FOUND):
        await site.ask(client, Command.DELETE_OFFSET, DeleteOffsetRequest(address(site), 1))
    with site.refuses(Code.INVALID_OFFSET):
        await site.ask(client, Command.STORE_OFFSET, StoreOffsetRequest(address(site), 0, 1))
    await site.send(client, "a")
    with site.refuses(Code.INVALID_OFFSET):
        await site.ask(client, Command.STORE_OFFSET, StoreOffsetRequest(address(site), 1, 1))
    with site.refuses(Code.PARTITION_NOT_FOUND):
        await site.ask(client, Command.GET_OFFSET, address(site, partition=5))


async def test_a_purge_removes_stored_offsets(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a")
    await site.ask(client, Command.STORE_OFFSET, StoreOffsetRequest(address(site), 0, 1))
    await client.purge_topic(site.stream, "t")
    assert await site.ask(client, Command.GET_OFFSET, address(site)) is None


async def test_a_flush_is_refused_as_the_peer_refuses_it(site: Site) -> None:
    client = await site.topic()
    with site.refuses(Code.FEATURE_UNAVAILABLE):
        await site.ask(client, Command.FLUSH, FlushRequest(site.stream, "t", 0, True))


async def test_thousands_of_messages_come_back_in_order(site: Site) -> None:
    client = await site.topic()
    for start in range(0, 3000, 1000):
        await site.send(client, *(str(n) for n in range(start, start + 1000)))
    found = [await site.poll(client, PollingStrategy.Offset(start), 700) for start in range(0, 3000, 700)]
    assert [text for part in found for text in payloads(part)] == [str(n) for n in range(3000)]
