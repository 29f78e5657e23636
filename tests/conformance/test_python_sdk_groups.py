"""Consumer groups: the SDK's methods for them, and several members that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from apache_iggy import AutoCommit, AutoCommitWhen, Consumer, IggyClient, PollingStrategy

from shardserver.errors import Code
from shardserver.protocol.addresses import CONSUMER_GROUP, GroupAddress, PartitionAddress
from shardserver.protocol.messages import PollRequest
from shardserver.protocol.offsets import StoreOffsetRequest
from shardserver.protocol.table import Command
from tests.conformance.site import Site, payloads
from tests.conformance.test_python_sdk_consumers import GROUP, consumer, take

NOT_OWNED = 0xFFFF_FFFF


async def joined(site: Site, count: int) -> list[IggyClient]:
    """Clients that are members, in the order of their joining."""
    members = []
    for _ in range(count):
        client = await site.connect()
        await client.join_consumer_group(site.stream, "t", GROUP)
        members.append(client)
    return members


async def owned(site: Site, client: IggyClient) -> list[int]:
    """Partitions that this member may poll."""
    found = await site.ask(client, Command.SYNC_GROUP, GroupAddress(site.stream, "t", GROUP))
    assert found is not None
    return sorted(found.partitions)


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(20):
        while not await what():
            await asyncio.sleep(0.005)


async def test_a_group_is_made_found_listed_and_deleted(site: Site) -> None:
    client = await site.topic(2)
    assert await client.get_consumer_group(site.stream, "t", GROUP) is None
    assert await client.get_consumer_groups(site.stream, "t") == []
    await client.create_consumer_group(site.stream, "t", GROUP)
    found = await client.get_consumer_group(site.stream, "t", GROUP)
    assert found is not None
    assert (found.name, found.partitions_count, found.members_count, found.members) == (GROUP, 2, 0, [])
    by_id = await client.get_consumer_group(site.stream, "t", found.id)
    assert by_id is not None and by_id.name == GROUP
    assert [one.name for one in await client.get_consumer_groups(site.stream, "t")] == [GROUP]
    await client.delete_consumer_group(site.stream, "t", GROUP)
    assert await client.get_consumer_group(site.stream, "t", GROUP) is None


async def test_ids_of_groups_are_not_used_again(site: Site) -> None:
    client = await site.topic()
    await client.create_consumer_group(site.stream, "t", "a")
    await client.delete_consumer_group(site.stream, "t", "a")
    await client.create_consumer_group(site.stream, "t", "b")
    (found,) = await client.get_consumer_groups(site.stream, "t")
    assert found.id == 1


async def test_group_errors_have_their_codes(site: Site) -> None:
    client = await site.topic()
    await client.create_consumer_group(site.stream, "t", GROUP)
    with site.refuses(Code.GROUP_NAME_ALREADY_EXISTS):
        await client.create_consumer_group(site.stream, "t", GROUP)
    with site.refuses(Code.GROUP_MEMBER_NOT_FOUND):
        await client.leave_consumer_group(site.stream, "t", GROUP)
    for call in client.join_consumer_group, client.leave_consumer_group, client.delete_consumer_group:
        with site.refuses(Code.GROUP_NOT_FOUND):
            await call(site.stream, "t", "missing")
        with site.refuses(Code.TOPIC_NOT_FOUND):
            await call(site.stream, "missing", GROUP)
        with site.refuses(Code.STREAM_NOT_FOUND):
            await call("missing", "t", GROUP)
    with site.refuses(Code.TOPIC_NOT_FOUND):
        await client.get_consumer_groups(site.stream, "missing")


async def test_the_first_member_gets_all_and_joining_twice_changes_nothing(site: Site) -> None:
    client = await site.topic(3)
    await client.create_consumer_group(site.stream, "t", GROUP)
    address = GroupAddress(site.stream, "t", GROUP)
    assert await site.ask(client, Command.SYNC_GROUP, address) is None
    await client.join_consumer_group(site.stream, "t", GROUP)
    first = await site.ask(client, Command.SYNC_GROUP, address)
    assert sorted(first.partitions) == [0, 1, 2]
    await client.join_consumer_group(site.stream, "t", GROUP)
    assert await site.ask(client, Command.SYNC_GROUP, address) == first
    me = await site.ask(client, Command.GET_ME)
    assert me.info.groups_count == len(me.memberships) == 1


async def test_members_share_all_partitions_whoever_comes_and_goes(site: Site) -> None:
    client = await site.topic(6)
    await client.create_consumer_group(site.stream, "t", GROUP)
    members = await joined(site, 3)

    async def is_shared() -> bool:
        shares = [await owned(site, one) for one in members]
        whole = sorted(partition for share in shares for partition in share) == list(range(6))
        return whole and max(map(len, shares)) - min(map(len, shares)) <= 1

    await until(is_shared)
    await members.pop(0).leave_consumer_group(site.stream, "t", GROUP)
    await until(is_shared)
    members += await joined(site, 2)
    await until(is_shared)
    await members.pop().logout_user()
    await until(is_shared)


async def test_more_members_than_partitions_leaves_some_idle(site: Site) -> None:
    client = await site.topic(1)
    await client.create_consumer_group(site.stream, "t", GROUP)
    members = await joined(site, 3)
    assert sorted([await owned(site, one) for one in members]) == [[], [], [0]]


async def test_the_generation_changes_with_the_assignment(site: Site) -> None:
    client = await site.topic(2)
    await client.create_consumer_group(site.stream, "t", GROUP)
    address, (first,) = GroupAddress(site.stream, "t", GROUP), await joined(site, 1)
    before = await site.ask(first, Command.SYNC_GROUP, address)
    await joined(site, 1)
    after = await site.ask(first, Command.SYNC_GROUP, address)
    assert after.generation > before.generation


async def test_added_partitions_reach_the_members(site: Site) -> None:
    client = await site.topic(1)
    await client.create_consumer_group(site.stream, "t", GROUP)
    (member,) = await joined(site, 1)
    await client.create_partitions(site.stream, "t", 2)

    async def has_all() -> bool:
        return await owned(site, member) == [0, 1, 2]

    await until(has_all)
    await client.delete_partitions(site.stream, "t", 1)

    async def has_two() -> bool:
        return await owned(site, member) == [0, 1]

    await until(has_two)


async def test_a_poll_of_a_partition_that_is_not_ones_own_gives_the_sentinel(site: Site) -> None:
    client = await site.topic(1)
    await site.send(client, "a")
    await client.create_consumer_group(site.stream, "t", GROUP)
    address = PartitionAddress(CONSUMER_GROUP, GROUP, site.stream, "t", 0)
    reply = await site.ask(client, Command.POLL_MESSAGES, PollRequest(address, 5, 0, 10, False))
    assert (reply.partition, reply.current_offset, reply.count) == (NOT_OWNED, 0, 0)


async def test_only_the_owner_commits_for_a_group(site: Site) -> None:
    client = await site.topic(1)
    await site.send(client, "a", "b")
    await client.create_consumer_group(site.stream, "t", GROUP)
    owner, idle = await joined(site, 2)
    if not await owned(site, owner):
        owner, idle = idle, owner
    address = PartitionAddress(CONSUMER_GROUP, GROUP, site.stream, "t", 0)
    await site.ask(owner, Command.STORE_OFFSET, StoreOffsetRequest(address, 1, 1))
    with site.refuses(Code.RESOURCE_NOT_FOUND):
        await site.ask(idle, Command.STORE_OFFSET, StoreOffsetRequest(address, 0, 1))
    found = await site.ask(idle, Command.GET_OFFSET, address)  # anyone may read it
    assert found.stored_offset == 1


async def test_a_group_polled_by_hand_gives_its_next_messages(site: Site) -> None:
    client = await site.topic(1)
    await site.send(client, "a", "b")
    await client.create_consumer_group(site.stream, "t", GROUP)
    await client.join_consumer_group(site.stream, "t", GROUP)
    group, following = Consumer.Group(GROUP), PollingStrategy.Next()
    assert payloads(await site.poll(client, following, 1, consumer=group, auto_commit=True)) == ["a"]
    assert payloads(await site.poll(client, following, 1, consumer=group, auto_commit=True)) == ["b"]


async def test_two_consumers_read_everything_once(site: Site) -> None:
    client = await site.topic(4)
    mode = AutoCommit.When(AutoCommitWhen.ConsumingEachMessage())
    readers = [await consumer(site, await site.connect(), auto_commit=mode) for _ in range(2)]
    seen: list[str] = []
    stop = asyncio.Event()

    async def read(message: object) -> None:
        seen.append(bytes(message.payload()).decode())  # type: ignore[attr-defined]

    reading = [asyncio.ensure_future(one.consume_messages(read, stop)) for one in readers]
    sent = [f"{partition}/{n}" for n in range(20) for partition in range(4)]
    for text in sent:
        await site.send(client, text, partition=int(text[0]))

    async def has_all() -> bool:
        return len(seen) >= len(sent)

    await until(has_all)
    stop.set()
    await asyncio.gather(*reading)
    assert sorted(seen) == sorted(sent)


async def test_a_consumer_that_is_left_alone_takes_over(site: Site) -> None:
    client = await site.topic(2)
    staying, leaving = await site.connect(), await site.connect()
    mode = AutoCommit.When(AutoCommitWhen.ConsumingEachMessage())
    reader = await consumer(site, staying, auto_commit=mode)
    await leaving.join_consumer_group(site.stream, "t", GROUP)
    await leaving.leave_consumer_group(site.stream, "t", GROUP)
    await site.send(client, "a", partition=0)
    await site.send(client, "b", partition=1)
    assert sorted(payloads(await take(reader.iter_messages(), 2))) == ["a", "b"]


async def test_a_deleted_group_is_no_longer_anybodys(site: Site) -> None:
    client = await site.topic(1)
    await client.create_consumer_group(site.stream, "t", GROUP)
    (member,) = await joined(site, 1)
    await client.delete_consumer_group(site.stream, "t", GROUP)
    assert await site.ask(member, Command.SYNC_GROUP, GroupAddress(site.stream, "t", GROUP)) is None
    me = await site.ask(member, Command.GET_ME)
    assert me.memberships == ()
