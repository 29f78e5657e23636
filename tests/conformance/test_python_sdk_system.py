"""Ping, sessions, clients, statistics, options and snapshot, by the SDK's methods or with our codecs."""

from __future__ import annotations

import io
import zipfile

import pytest
from apache_iggy import AutoLogin, IggyClient, TcpConfig, TcpReconnectionConfig

from shardserver.errors import Code
from shardserver.protocol.clients import GetClientRequest
from shardserver.protocol.system import DescribeOptionsRequest, SnapshotRequest
from shardserver.protocol.table import Command
from tests.conformance.site import Site
from tests.server_process import PASSWORD

TOPIC_KEYS = {
    "compression_algorithm", "message_expiry", "max_topic_size", "segment_size", "durability", "enforce_fsync",
    "consumer_offset_durability", "messages_required_to_save", "size_of_messages_required_to_save",
    "preallocate_segments",
}  # fmt: skip
WRONG_PASSWORD, WRONG_TOKEN = 9, 10


async def test_a_ping_needs_no_login_and_all_else_does(site: Site) -> None:
    client = await site.connect_anonymously()
    await client.ping()
    with site.client_or_server_refuses():
        await client.get_streams()
    with site.client_or_server_refuses():
        await client.send_binary_request(int(Command.GET_ME), b"")


async def test_a_change_before_the_login_evicts(site: Site) -> None:
    client = await site.connect_anonymously()
    with site.client_or_server_refuses():
        await client.create_stream(site.stream)
    other = await site.connect()
    assert await other.get_stream(site.stream) is None


async def test_a_login_by_hand_works_and_a_wrong_one_is_evicted(site: Site) -> None:
    client = await site.connect_anonymously()
    for name, password in ("iggy", "wrong-password"), ("nobody", PASSWORD):
        with site.refuses(0, eviction=WRONG_PASSWORD):
            await client.login_user(name, password)
    await client.login_user("iggy", PASSWORD)
    assert await client.get_streams() is not None


async def test_after_a_logout_the_connection_may_log_in_again(site: Site) -> None:
    client = await site.connect_anonymously()
    for _ in range(2):
        await client.login_user("iggy", PASSWORD)
        await client.get_streams()
        await client.logout_user()
    with pytest.raises(RuntimeError):
        await client.get_streams()
    assert site.exchanges(Command.LOGOUT)


async def test_a_wrong_token_is_evicted(site: Site) -> None:
    login = AutoLogin.personal_access_token("x" * 68)
    config = TcpConfig(server_address=site.address, auto_login=login, reconnection=TcpReconnectionConfig(enabled=False))
    with site.refuses(0, eviction=WRONG_TOKEN):
        await IggyClient(config).connect()


async def test_a_client_with_a_configuration_logs_in_by_itself(site: Site) -> None:
    config = TcpConfig(
        server_address=site.address, auto_login=AutoLogin.username_password("iggy", PASSWORD), nodelay=True
    )
    client = IggyClient(config)
    await client.connect()
    assert await client.get_streams() is not None
    assert site.commands()[:2] == [
        Command.LOGIN.name,
        Command.GET_CLUSTER_METADATA.name,
    ]  # pings have a thread of their own


async def test_cluster_metadata_names_one_node(site: Site) -> None:
    client = await site.connect()
    found = await site.ask(client, Command.GET_CLUSTER_METADATA)
    (node,) = found.nodes
    assert f"{node.ip}:{node.tcp_port}" == site.address  # what the server advertises
    assert (found.name, node.name, node.role, node.status) == ("single-node", "iggy-node", 0, 0)


async def test_options_are_described_with_texts(site: Site) -> None:
    client = await site.connect()
    found = await client.describe_options("topic")
    assert {one.key for one in found} >= TOPIC_KEYS
    assert all(one.description and one.kind for one in found)
    assert await client.describe_options("stream") == [] == await client.describe_options("user")
    with site.refuses(Code.INVALID_COMMAND):
        await site.ask(client, Command.DESCRIBE_OPTIONS, DescribeOptionsRequest(9))


async def test_unknown_commands_are_refused_and_the_connection_lives(site: Site) -> None:
    client = await site.connect()
    for code in 777, 10_000, 0xFFFF_FFFF:
        with site.refuses(Code.INVALID_COMMAND):
            await client.send_binary_request(code, b"body")
    assert await client.get_streams() is not None


async def test_statistics_count_what_there_is(site: Site) -> None:
    client = await site.topic(3)
    before = await client.get_stats()
    await site.send(client, "a", "b")
    after = await client.get_stats()
    assert after.messages_count >= before.messages_count + 2
    assert after.messages_size_bytes > before.messages_size_bytes
    assert after.streams_count >= 1 and after.topics_count >= 1 and after.partitions_count >= 3
    assert after.segments_count >= 3 and after.clients_count >= 1
    assert after.memory_usage > 0 and after.total_memory >= after.available_memory > 0
    assert after.run_time >= before.run_time and after.start_time > 0 and after.process_id > 0
    assert after.hostname and after.os_name and after.kernel_version and after.iggy_server_version
    assert after.total_disk_space >= after.free_disk_space > 0 and after.threads_count >= 1
    assert after.cpu_usage >= 0 and after.total_cpu_usage >= 0 and after.read_bytes >= 0 and after.written_bytes > 0


async def test_a_client_finds_itself_and_others(site: Site) -> None:
    client, other = await site.connect(), await site.connect()
    me, them = await site.ask(client, Command.GET_ME), await site.ask(other, Command.GET_ME)
    assert me.info.client_id != them.info.client_id and me.info.transport == 1
    assert me.info.user_id == 0 and me.info.address.startswith("127.0.0.1:")
    listed = {one.client_id for one in (await site.ask(client, Command.GET_CLIENTS)).clients}
    assert {me.info.client_id, them.info.client_id} <= listed
    found = await site.ask(client, Command.GET_CLIENT, GetClientRequest(them.info.client_id))
    assert found.info.address == them.info.address
    assert await site.ask(client, Command.GET_CLIENT, GetClientRequest(0xFFFF_FFF0)) is None


@pytest.mark.parametrize("compression", [1, 2])
async def test_a_snapshot_is_an_archive_without_secrets(site: Site, compression: int) -> None:
    client = await site.connect()
    found = await site.ask(client, Command.GET_SNAPSHOT, SnapshotRequest(compression, (100,)))
    with zipfile.ZipFile(io.BytesIO(bytes(found.archive))) as archive:
        assert archive.testzip() is None and archive.namelist()
        assert not any(PASSWORD.encode() == archive.read(name).strip() for name in archive.namelist())


async def test_a_snapshot_of_unknown_parts_is_refused(site: Site) -> None:
    client = await site.connect()
    for body in b"\x09\x01\x64", b"\x01\x01\x63", b"\x01":
        with site.refuses(Code.INVALID_COMMAND):
            await client.send_binary_request(int(Command.GET_SNAPSHOT), body)
