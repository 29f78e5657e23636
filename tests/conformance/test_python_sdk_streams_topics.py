"""Streams, topics, partitions and options by the SDK's own methods."""

from __future__ import annotations

import datetime

import pytest
from apache_iggy import Durability, IggyExpiry, MaxTopicSize

from shardserver.errors import Code
from shardserver.protocol.addresses import StreamAddress
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.tlv import KIND_STRING, Typed
from shardserver.protocol.topics import CreateTopicRequest, DeleteSegmentsRequest, PartitionsRequest
from tests.conformance.site import Site, payloads

MEBIBYTE = 1 << 20
NAMES = ["1a", "a/b", "..", ".", "😀", " ", "x" * 255, "ä" * 127, "con\tnul", "%2e"]


async def test_a_created_stream_is_found_by_name_by_id_and_in_the_list(site: Site) -> None:
    client = await site.connect()
    await client.create_stream(site.stream)
    found = await client.get_stream(site.stream)
    assert found is not None and found.name == site.stream and found.topics_count == 0 and found.created_at > 0
    by_id = await client.get_stream(found.id)
    assert by_id is not None and by_id.name == site.stream
    assert site.stream in [one.name for one in await client.get_streams()]


async def test_a_missing_stream_or_topic_is_none_and_no_error(site: Site) -> None:
    client = await site.connect()
    assert await client.get_stream("missing") is None
    assert await client.get_stream(4_000_000) is None
    assert await client.get_topic("missing", "t") is None
    await client.create_stream(site.stream)
    assert await client.get_topic(site.stream, "missing") is None
    assert await client.get_topics(site.stream) == []


async def test_a_stream_is_renamed_and_deleted(site: Site) -> None:
    client = await site.connect()
    await client.create_stream(site.stream)
    await client.update_stream(site.stream, site.stream)  # its own name is fine
    await client.update_stream(site.stream, site.stream + "2")
    assert await client.get_stream(site.stream) is None
    await client.delete_stream(site.stream + "2")
    assert await client.get_stream(site.stream + "2") is None


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_any_name_works_for_streams_and_topics(site: Site, name: str) -> None:
    client = await site.connect()
    if await client.get_stream(name) is not None:
        await client.delete_stream(name)
    await client.create_stream(name)
    await client.create_topic(name, name, partitions_count=1)
    found = await client.get_topic(name, name)
    assert found is not None and found.name == name
    await client.delete_stream(name)


async def test_names_are_compared_as_bytes(site: Site) -> None:
    client = await site.topic(name="Case")
    await client.create_topic(site.stream, "case", partitions_count=1)
    assert {topic.name for topic in await client.get_topics(site.stream)} == {"Case", "case"}


async def test_the_lowest_free_topic_id_is_used_again(site: Site) -> None:
    client = await site.topic(name="a")
    await client.create_topic(site.stream, "b", partitions_count=1)
    await client.delete_topic(site.stream, "a")
    await client.create_topic(site.stream, "c", partitions_count=1)
    assert {(one.name, one.id) for one in await client.get_topics(site.stream)} == {("c", 0), ("b", 1)}


async def test_stream_errors_have_their_codes(site: Site) -> None:
    client = await site.connect()
    await client.create_stream(site.stream)
    with site.refuses(Code.STREAM_NAME_ALREADY_EXISTS):
        await client.create_stream(site.stream)
    await client.create_stream(site.stream + "2")
    with site.refuses(Code.STREAM_NAME_ALREADY_EXISTS):
        await client.update_stream(site.stream + "2", site.stream)
    for call in client.delete_stream, client.purge_stream:
        with site.refuses(Code.STREAM_NOT_FOUND):
            await call("missing")
    with site.refuses(Code.STREAM_NOT_FOUND):
        await client.update_stream("missing", "other")
    with site.refuses(Code.STREAM_NOT_FOUND):
        await client.create_topic("missing", "t", partitions_count=1)
    with site.refuses(Code.UNSUPPORTED_OPTION_KEY):
        await client.update_stream(site.stream, site.stream, options={"colour": "red"})


async def test_topic_errors_have_their_codes(site: Site) -> None:
    client = await site.topic()
    with site.refuses(Code.TOPIC_NAME_ALREADY_EXISTS):
        await client.create_topic(site.stream, "t", partitions_count=1)
    await client.create_topic(site.stream, "u", partitions_count=1)
    with site.refuses(Code.TOPIC_NAME_ALREADY_EXISTS):
        await client.update_topic(site.stream, "u", "t")
    for call in client.delete_topic, client.purge_topic:
        with site.refuses(Code.TOPIC_NOT_FOUND):
            await call(site.stream, "missing")
        with site.refuses(Code.STREAM_NOT_FOUND):
            await call("missing", "t")
    with site.refuses(Code.TOPIC_NOT_FOUND):
        await client.update_topic(site.stream, "missing", "other")
    with site.refuses(Code.TOO_MANY_PARTITIONS):
        await client.create_topic(site.stream, "wide", partitions_count=1001)


async def test_option_errors_have_their_codes(site: Site) -> None:
    client = await site.topic()
    with site.refuses(Code.UNSUPPORTED_OPTION_KEY):
        await client.create_topic(site.stream, "o", partitions_count=1, options={"colour": "red"})
    with site.refuses(Code.INVALID_OPTION_VALUE):
        await client.create_topic(site.stream, "o", partitions_count=1, segment_size=1000)
    with site.refuses(Code.INVALID_OPTION_VALUE):
        await client.create_topic(site.stream, "o", partitions_count=1, options={"message_expiry": "soon"})
    with site.refuses(Code.INVALID_TOPIC_SIZE):
        size = MaxTopicSize.Custom(MEBIBYTE)
        await client.create_topic(site.stream, "o", partitions_count=1, max_topic_size=size, segment_size=2 * MEBIBYTE)
    with site.refuses(Code.UNSUPPORTED_OPTION_KEY):
        await client.update_topic(site.stream, "t", "t", options={"segment_size": "2 MiB"})
    with site.refuses(Code.OPTIONS_BLOCK_TOO_LARGE):
        many = {f"key{n}": Typed(KIND_STRING, "1") for n in range(1025)}
        await site.ask(client, Command.CREATE_TOPIC, CreateTopicRequest(site.stream, 1, "o", many))


async def test_typed_options_of_a_topic_are_told_as_given(site: Site) -> None:
    expiry = IggyExpiry.ExpireDuration(datetime.timedelta(days=7))
    client = await site.topic(
        compression_algorithm="gzip", message_expiry=expiry, max_topic_size=MaxTopicSize.Custom(10 << 30),
        segment_size=2 * MEBIBYTE, durability=Durability.PERSISTED, messages_required_to_save=10,
        size_of_messages_required_to_save=4096, preallocate_segments=False,
    )  # fmt: skip
    topic = await client.get_topic(site.stream, "t")
    assert topic is not None
    assert topic.compression_algorithm == "gzip"
    assert isinstance(topic.message_expiry, IggyExpiry.ExpireDuration)
    assert topic.message_expiry.duration == datetime.timedelta(days=7)
    assert isinstance(topic.max_topic_size, MaxTopicSize.Custom)
    options = topic.options.to_scalar_dict()
    assert options["segment_size"] == 2 * MEBIBYTE and options["durability"] == "persisted"
    assert options["messages_required_to_save"] == 10 and options["preallocate_segments"] is False


async def test_text_options_are_told_in_their_canonical_kind(site: Site) -> None:
    client = await site.topic(options={"message_expiry": "7 days", "max_topic_size": "10 GiB", "segment_size": "2 MiB"})
    topic = await client.get_topic(site.stream, "t")
    assert topic is not None
    options = topic.options.to_scalar_dict()
    assert options["message_expiry"] == 7 * 86_400 * 10**6
    assert options["max_topic_size"] == 10 << 30 and options["segment_size"] == 2 * MEBIBYTE
    assert "messages_required_to_save" in topic.derived_options.to_scalar_dict()


async def test_an_update_changes_what_it_names_and_keeps_the_rest(site: Site) -> None:
    client = await site.topic(compression_algorithm="gzip")
    never, unlimited = IggyExpiry.NeverExpire(), MaxTopicSize.Unlimited()
    await client.update_topic(site.stream, "t", "renamed", message_expiry=never, max_topic_size=unlimited)
    topic = await client.get_topic(site.stream, "renamed")
    assert topic is not None and topic.compression_algorithm == "gzip"
    assert isinstance(topic.message_expiry, IggyExpiry.NeverExpire)
    assert isinstance(topic.max_topic_size, MaxTopicSize.Unlimited)


async def test_partitions_are_added_and_removed_at_the_end(site: Site) -> None:
    client = await site.topic(2)
    await client.create_partitions(site.stream, "t", 3)
    await site.send(client, "kept", partition=2)
    await client.delete_partitions(site.stream, "t", 2)
    topic = await client.get_topic(site.stream, "t")
    assert topic is not None and [one.id for one in topic.partitions] == [0, 1, 2]
    assert topic.partitions[2].messages_count == 1 and topic.partitions[2].segments_count >= 1
    with site.refuses(Code.INVALID_PARTITIONS_COUNT):
        await client.delete_partitions(site.stream, "t", 4)
    for count in 0, 1001:
        with site.refuses(Code.TOO_MANY_PARTITIONS):
            await site.ask(client, Command.CREATE_PARTITIONS, PartitionsRequest(site.stream, "t", count))
    with site.refuses(Code.TOPIC_NOT_FOUND):
        await client.create_partitions(site.stream, "missing", 1)


async def test_a_purged_topic_starts_at_offset_0_again(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a", "b")
    await client.purge_topic(site.stream, "t")
    assert await site.poll(client) == []
    assert await site.send(client, "c") == 0
    assert payloads(await site.poll(client)) == ["c"]


async def test_a_purged_stream_has_no_messages_but_its_topics(site: Site) -> None:
    client = await site.topic()
    await client.create_topic(site.stream, "u", partitions_count=1)
    await site.send(client, "a")
    await site.send(client, "b", topic="u")
    await client.purge_stream(site.stream)
    stream = await client.get_stream(site.stream)
    assert stream is not None and stream.topics_count == 2 and stream.messages_count == 0


async def test_a_recreated_topic_has_no_old_messages(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "old")
    await client.delete_topic(site.stream, "t")
    await client.create_topic(site.stream, "t", partitions_count=1)
    assert await site.poll(client) == []
    assert await site.send(client, "new") == 0


async def test_sizes_and_counts_follow_the_messages(site: Site) -> None:
    client = await site.topic(2)
    await site.send(client, "a", "b", partition=0)
    await site.send(client, "c", partition=1)
    topic, stream = await client.get_topic(site.stream, "t"), await client.get_stream(site.stream)
    assert topic is not None and stream is not None
    assert topic.messages_count == stream.messages_count == 3
    assert topic.size == stream.size == sum(one.size for one in topic.partitions) > 3 * 48
    assert [one.current_offset for one in topic.partitions] == [1, 0]


async def test_segments_that_are_not_sealed_stay(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a")
    await site.ask(client, Command.DELETE_SEGMENTS, DeleteSegmentsRequest(site.stream, "t", 0, 1))
    assert payloads(await site.poll(client)) == ["a"]
    with site.refuses(Code.PARTITION_NOT_FOUND):
        await site.ask(client, Command.DELETE_SEGMENTS, DeleteSegmentsRequest(site.stream, "t", 9, 1))


async def test_an_empty_name_is_refused_by_client_or_server(site: Site) -> None:
    client = await site.connect()
    with site.client_refuses():
        await client.create_stream("")
    with site.refuses(Code.INVALID_COMMAND):
        await client.send_binary_request(int(Command.CREATE_STREAM), b"\x00" + bytes(4))
    with site.refuses(Code.INVALID_COMMAND):
        await client.send_binary_request(int(Command.CREATE_STREAM), b"\x01\xff" + bytes(4))


async def test_raw_requests_are_those_of_the_methods(site: Site) -> None:
    client = await site.connect()
    made = await site.ask(client, Command.CREATE_STREAM, CreateStreamRequest(site.stream, {}))
    assert made.header.name == site.stream
    found = await site.ask(client, Command.GET_STREAM, StreamAddress(site.stream))
    assert found.header.id == made.header.id


async def test_a_name_of_digits_is_no_id(site: Site) -> None:
    client, name = await site.connect(), str(10**9 + len(site.commands()))
    made = await site.ask(client, Command.CREATE_STREAM, CreateStreamRequest(name, {}))
    assert await client.get_stream(int(name)) is None
    found = await site.ask(client, Command.GET_STREAM, StreamAddress(name))
    assert found.header.id == made.header.id
    await client.delete_stream(made.header.id)
