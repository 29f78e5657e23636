"""The SDK's consumer object: every way to commit, every place to start, offsets by hand."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest
from apache_iggy import AutoCommit, AutoCommitAfter, AutoCommitWhen, IggyClient, IggyConsumer, PollingStrategy

from shardserver.errors import Code
from shardserver.protocol.addresses import CONSUMER_GROUP, PartitionAddress
from shardserver.protocol.table import Command
from tests.conformance.site import Site, payloads

POLL_INTERVAL = datetime.timedelta(milliseconds=1)
OFTEN = datetime.timedelta(milliseconds=10)
GROUP = "readers"
EVERY_2ND = AutoCommit.When(AutoCommitWhen.ConsumingEveryNthMessage(2))
AFTER_EVERY_2ND = AutoCommit.After(AutoCommitAfter.ConsumingEveryNthMessage(2))
MODES = {
    "interval": AutoCommit.Interval(OFTEN),
    "when polling": AutoCommit.When(AutoCommitWhen.PollingMessages()),
    "when consuming all": AutoCommit.When(AutoCommitWhen.ConsumingAllMessages()),
    "when consuming each": AutoCommit.When(AutoCommitWhen.ConsumingEachMessage()),
    "when consuming every 2nd": EVERY_2ND,
    "interval or when polling": AutoCommit.IntervalOrWhen(OFTEN, AutoCommitWhen.PollingMessages()),
    "interval or when consuming each": AutoCommit.IntervalOrWhen(OFTEN, AutoCommitWhen.ConsumingEachMessage()),
}
# The SDK commits in these modes only when it calls back.
MODES_OF_CALLBACKS = {
    "after consuming all": AutoCommit.After(AutoCommitAfter.ConsumingAllMessages()),
    "after consuming each": AutoCommit.After(AutoCommitAfter.ConsumingEachMessage()),
    "after consuming every 2nd": AFTER_EVERY_2ND,
    "interval or after each": AutoCommit.IntervalOrAfter(OFTEN, AutoCommitAfter.ConsumingEachMessage()),
}


async def consumer(site: Site, client: IggyClient, name: str = GROUP, **more: Any) -> IggyConsumer:
    wanted = {"poll_interval": POLL_INTERVAL, "polling_strategy": PollingStrategy.Next(), "batch_length": 10} | more
    return await client.consumer_group(name, site.stream, "t", **wanted)


async def take(messages: AsyncIterator[Any], count: int) -> list[Any]:
    """Raises TimeoutError."""
    return [await asyncio.wait_for(anext(messages), 20) for _ in range(count)]


async def committed(site: Site, client: IggyClient, partition: int = 0) -> int | None:
    """Of the group."""
    address = PartitionAddress(CONSUMER_GROUP, GROUP, site.stream, "t", partition)
    found = await site.ask(client, Command.GET_OFFSET, address)
    return None if found is None else int(found.stored_offset)


async def wait_committed(site: Site, client: IggyClient, offset: int) -> None:
    """The SDK commits in its own threads: asks until it has. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while await committed(site, client) != offset:
            await asyncio.sleep(0.005)


async def test_a_consumer_makes_its_group_and_joins_it(site: Site) -> None:
    client = await site.topic(2)
    await site.send(client, "a")
    made = await consumer(site, client)
    (message,) = await take(made.iter_messages(), 1)
    assert payloads([message]) == ["a"]
    assert made.name() == GROUP and made.stream() == site.stream and made.topic() == "t"
    group = await client.get_consumer_group(site.stream, "t", GROUP)
    assert group is not None and group.members_count == 1 and group.members[0].partitions == [0, 1]
    assert {Command.CREATE_GROUP.name, Command.JOIN_GROUP.name, Command.SYNC_GROUP.name} <= set(site.commands())


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
async def test_every_mode_of_committing_commits_what_was_read(site: Site, mode: AutoCommit) -> None:
    client = await site.topic()
    await site.send(client, "a", "b", "c", "d")
    made = await consumer(site, client, auto_commit=mode)
    found = await take(made.iter_messages(), 4)
    assert payloads(found) == ["a", "b", "c", "d"]
    await wait_committed(site, client, 2 if mode is EVERY_2ND else 3)  # the SDK counts from offset 0
    assert made.get_last_consumed_offset(0) == 3


@pytest.mark.parametrize("mode", MODES_OF_CALLBACKS.values(), ids=MODES_OF_CALLBACKS.keys())
async def test_modes_after_a_callback_commit_what_was_handled(site: Site, mode: AutoCommit) -> None:
    client = await site.topic()
    await site.send(client, "a", "b", "c", "d")
    made, seen, stop = await consumer(site, client, auto_commit=mode), [], asyncio.Event()

    async def handle(message: Any) -> None:
        seen.append(bytes(message.payload()).decode())

    reading = asyncio.ensure_future(made.consume_messages(handle, stop))
    await wait_committed(site, client, 2 if mode is AFTER_EVERY_2ND else 3)
    stop.set()
    await asyncio.wait_for(reading, 20)
    assert seen == ["a", "b", "c", "d"]


async def test_without_automatic_commits_only_those_by_hand_count(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a", "b", "c")
    made = await consumer(site, client, auto_commit=AutoCommit.Disabled())
    await take(made.iter_messages(), 3)
    assert await committed(site, client) is None
    await made.store_offset(1, 0)
    assert await committed(site, client) == 1 == made.get_last_stored_offset(0)
    await made.delete_offset(0)
    assert await committed(site, client) is None
    with site.refuses(Code.INVALID_OFFSET):
        await made.store_offset(3, 0)


@pytest.mark.parametrize(
    ("strategy", "due"),
    [
        (PollingStrategy.First(), ["a", "b", "c"]),
        (PollingStrategy.Offset(1), ["b", "c"]),
        (PollingStrategy.Last(), ["c"]),
        (PollingStrategy.Timestamp(1), ["a", "b", "c"]),
    ],
    ids=["first", "offset", "last", "timestamp"],
)
async def test_a_consumer_starts_where_it_is_told(site: Site, strategy: PollingStrategy, due: list[str]) -> None:
    client = await site.topic()
    await site.send(client, "a", "b", "c")
    made = await consumer(
        site, client, polling_strategy=strategy, batch_length=1 if isinstance(strategy, PollingStrategy.Last) else 10,
        auto_commit=AutoCommit.Disabled(),
    )  # fmt: skip
    assert payloads(await take(made.iter_messages(), len(due))) == due


async def test_a_second_consumer_of_the_group_goes_on_where_the_first_stopped(site: Site) -> None:
    client = await site.topic()
    await site.send(client, "a", "b")
    mode = AutoCommit.When(AutoCommitWhen.ConsumingEachMessage())
    first = await consumer(site, client, auto_commit=mode)
    await take(first.iter_messages(), 2)
    await wait_committed(site, client, 1)
    await client.leave_consumer_group(site.stream, "t", GROUP)
    other = await site.connect()
    await site.send(client, "c")
    again = await consumer(site, other, auto_commit=mode)
    assert payloads(await take(again.iter_messages(), 1)) == ["c"]


async def test_a_consumer_that_may_make_no_group_says_that_it_is_missing(site: Site) -> None:
    client = await site.topic()
    with pytest.raises(RuntimeError, match="not found"):
        await consumer(
            site, client, create_consumer_group_if_not_exists=False, init_retries=1, init_retry_interval=OFTEN
        )


async def test_messages_sent_while_a_consumer_waits_reach_it(site: Site) -> None:
    client = await site.topic(3)
    made = await consumer(site, client)
    messages = made.iter_messages()
    for partition, text in enumerate("abc"):
        await site.send(client, text, partition=partition)
    assert sorted(payloads(await take(messages, 3))) == ["a", "b", "c"]
