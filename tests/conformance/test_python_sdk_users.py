"""Users, permissions and tokens: the SDK's methods, and tokens with our codecs."""

from __future__ import annotations

import pytest
from apache_iggy import (
    AutoLogin,
    GlobalPermissions,
    IggyClient,
    Permissions,
    SendMessage,
    StreamPermissions,
    TcpConfig,
    TcpReconnectionConfig,
    TopicPermissions,
    UserStatus,
)

from shardserver.errors import Code
from shardserver.protocol.table import Command
from shardserver.protocol.tokens import CreateTokenRequest, DeleteTokenRequest
from shardserver.protocol.users import CreateUserRequest
from tests.conformance.site import Site, payloads

PASSWORD = "s3cret99"
WRONG_PASSWORD, WRONG_TOKEN = 9, 10
ROOT = 0


async def made(site: Site, permissions: Permissions | None = None) -> tuple[IggyClient, str]:
    """Root's client, and the name of a new user."""
    client, name = await site.connect(), site.new_name("user")
    await client.create_user(name, PASSWORD, permissions=permissions)
    return client, name


async def connect_with(site: Site, token: str) -> IggyClient:
    config = TcpConfig(
        server_address=site.address,
        auto_login=AutoLogin.personal_access_token(token),
        reconnection=TcpReconnectionConfig(enabled=False),
    )
    client = IggyClient(config)
    await client.connect()
    return client


async def test_a_user_is_made_found_listed_and_deleted(site: Site) -> None:
    client, name = await site.connect(), site.new_name("user")
    wanted = Permissions(
        GlobalPermissions(read_streams=True), {7: StreamPermissions(topics={1: TopicPermissions(poll_messages=True)})}
    )
    told = await client.create_user(name, PASSWORD, UserStatus.Active, wanted)
    assert told.username == name and told.permissions == wanted and told.status == UserStatus.Active
    found = await client.get_user(name)
    assert found is not None and found.id == told.id and found.permissions == wanted and found.created_at > 0
    assert name in [one.username for one in await client.get_users()]
    await client.delete_user(name)
    assert await client.get_user(name) is None


async def test_a_user_is_renamed_and_switched_off(site: Site) -> None:
    client, name = await made(site)
    await client.update_user(name, username=name + "2")
    await site.connect(name + "2", PASSWORD)
    await client.update_user(name + "2", status=UserStatus.Inactive)
    with site.refuses(0, eviction=WRONG_PASSWORD):
        await site.connect(name + "2", PASSWORD)
    found = await client.get_user(name + "2")
    assert found is not None and found.status == UserStatus.Inactive


async def test_user_errors_have_their_codes(site: Site) -> None:
    client, name = await made(site)
    with site.refuses(Code.USER_ALREADY_EXISTS):
        await client.create_user(name, PASSWORD)
    _, other = await made(site)
    with site.refuses(Code.USER_ALREADY_EXISTS):
        await client.update_user(name, username=other)
    with site.refuses(Code.RESOURCE_NOT_FOUND):
        await client.delete_user("missing")
    with site.refuses(Code.RESOURCE_NOT_FOUND):
        await client.update_user("missing", username="other")
    with site.refuses(Code.RESOURCE_NOT_FOUND):
        await client.update_permissions("missing", None)
    with site.refuses(Code.RESOURCE_NOT_FOUND):
        await client.change_password("missing", PASSWORD, "password2")
    with site.refuses(Code.UNSUPPORTED_OPTION_KEY):
        await client.update_user(name, options={"colour": "red"})


async def test_names_and_passwords_have_their_lengths(site: Site) -> None:
    client = await site.connect()
    for username, password in ("ab", PASSWORD), ("x" * 51, PASSWORD), ("abc", "pw"), ("abc", "x" * 101):
        with site.client_refuses():
            await client.create_user(username, password)
    for username, password, code in [
        ("ab", PASSWORD, Code.INVALID_USERNAME),
        ("x" * 51, PASSWORD, Code.INVALID_USERNAME),
        ("abc", "pw", Code.INVALID_PASSWORD),
        ("abc", "x" * 101, Code.INVALID_PASSWORD),
    ]:
        with site.refuses(code):
            await site.ask(client, Command.CREATE_USER, CreateUserRequest(username, password, 1, None, {}))
    with site.refuses(Code.INVALID_USER_STATUS):
        await site.ask(client, Command.CREATE_USER, CreateUserRequest("abc", PASSWORD, 9, None, {}))


async def test_root_stays_what_it_is(site: Site) -> None:
    client = await site.connect()
    with site.refuses(Code.CANNOT_DELETE_USER):
        await client.delete_user(ROOT)
    with site.refuses(Code.CANNOT_CHANGE_PERMISSIONS):
        await client.update_permissions(ROOT, None)
    with site.refuses(Code.CANNOT_CHANGE_PERMISSIONS):
        await client.update_user(ROOT, status=UserStatus.Inactive)


async def test_a_changed_password_is_the_one_that_counts(site: Site) -> None:
    client, name = await made(site)
    with site.refuses(Code.INVALID_CREDENTIALS):
        await client.change_password(name, "not-this-one", "password2")
    await client.change_password(name, PASSWORD, "password2")
    with site.refuses(0, eviction=WRONG_PASSWORD):
        await site.connect(name, PASSWORD)
    user = await site.connect(name, "password2")
    await user.change_password(name, "password2", "password3")  # one's own needs no permission
    await user.ping()
    await site.connect(name, "password3")


async def test_nothing_is_allowed_without_permissions_but_ones_own(site: Site) -> None:
    await site.topic()
    _, name = await made(site)
    user = await site.connect(name, PASSWORD)
    me = await user.get_user(name)
    assert me is not None and me.permissions is None
    await user.describe_options("topic")
    for call in (
        user.get_streams, user.get_users, user.get_stats, lambda: user.get_stream(site.stream),
        lambda: user.get_topic(site.stream, "t"), lambda: user.create_stream(site.new_name("s")),
        lambda: user.delete_stream(site.stream), lambda: site.poll(user), lambda: site.send(user, "a"),
        lambda: user.create_user(site.new_name("user"), PASSWORD),
        lambda: site.ask(user, Command.GET_CLIENTS),
    ):  # fmt: skip
        with site.refuses(Code.UNAUTHORIZED):
            await call()


async def test_not_found_is_told_before_not_allowed(site: Site) -> None:
    _, name = await made(site)
    user = await site.connect(name, PASSWORD)
    with site.refuses(Code.STREAM_NOT_FOUND):
        await user.delete_stream("missing")
    assert await user.get_user("missing") is None


@pytest.mark.parametrize("level", ["global", "stream", "topic"])
async def test_a_permission_counts_at_its_level(site: Site, level: str) -> None:
    root = await site.topic(2)
    await root.create_topic(site.stream, "u", partitions_count=1)
    stream = await root.get_stream(site.stream)
    assert stream is not None
    wanted = {
        "global": Permissions(GlobalPermissions(send_messages=True, poll_messages=True)),
        "stream": Permissions(streams={stream.id: StreamPermissions(send_messages=True, poll_messages=True)}),
        "topic": Permissions(
            streams={stream.id: StreamPermissions(topics={0: TopicPermissions(send_messages=True, poll_messages=True)})}
        ),
    }[level]
    _, name = await made(site, wanted)
    user = await site.connect(name, PASSWORD)
    await user.send_messages(stream.id, 0, 1, [SendMessage("a")])
    assert payloads(await site.poll(user, partition_id=1)) == ["a"]
    with site.refuses(Code.UNAUTHORIZED):
        await user.create_partitions(site.stream, "t", 1)
    if level == "topic":
        with site.refuses(Code.UNAUTHORIZED):
            await user.send_messages(stream.id, 1, 0, [SendMessage("a")])


async def test_changed_permissions_count_at_the_next_request(site: Site) -> None:
    root = await site.topic()
    _, name = await made(site)
    user = await site.connect(name, PASSWORD)
    await root.update_permissions(name, Permissions(GlobalPermissions(read_streams=True)))
    await user.get_streams()
    await root.update_permissions(name, None)
    with site.refuses(Code.UNAUTHORIZED):
        await user.get_streams()


async def test_a_recreated_stream_inherits_no_permissions(site: Site) -> None:
    root = await site.topic()
    stream = await root.get_stream(site.stream)
    assert stream is not None
    _, name = await made(site, Permissions(streams={stream.id: StreamPermissions(manage_stream=True)}))
    user = await site.connect(name, PASSWORD)
    await user.get_stream(site.stream)
    await root.delete_stream(site.stream)
    await root.create_stream(site.stream)
    again = await root.get_stream(site.stream)
    assert again is not None and again.id == stream.id  # the wire's number comes again
    with site.refuses(Code.UNAUTHORIZED):
        await user.get_stream(site.stream)


async def test_a_token_logs_in_as_its_user_until_it_is_deleted(site: Site) -> None:
    client, name = await made(site)
    user, token = await site.connect(name, PASSWORD), site.new_name("token")
    raw = (await site.ask(user, Command.CREATE_TOKEN, CreateTokenRequest(token, 0))).token
    listed = await site.ask(user, Command.GET_TOKENS)
    assert [(one.name, one.expires_at) for one in listed.tokens] == [(token, 0)]
    assert (await site.ask(client, Command.GET_TOKENS)).tokens == ()  # root has none of it
    by_token = await connect_with(site, raw)
    me = await site.ask(by_token, Command.GET_ME)
    found = await client.get_user(name)
    assert found is not None and me.info.user_id == found.id
    await site.ask(user, Command.DELETE_TOKEN, DeleteTokenRequest(token))
    with site.refuses(0, eviction=WRONG_TOKEN):
        await connect_with(site, raw)


async def test_token_errors_have_their_codes(site: Site) -> None:
    _, name = await made(site)
    user = await site.connect(name, PASSWORD)
    await site.ask(user, Command.CREATE_TOKEN, CreateTokenRequest("one", 10**12))
    with site.refuses(Code.TOKEN_ALREADY_EXISTS):
        await site.ask(user, Command.CREATE_TOKEN, CreateTokenRequest("one", 0))
    with site.refuses(Code.RESOURCE_NOT_FOUND):
        await site.ask(user, Command.DELETE_TOKEN, DeleteTokenRequest("missing"))
    with site.refuses(56):
        await site.ask(user, Command.CREATE_TOKEN, CreateTokenRequest("late", (1 << 64) - 2))
    for number in range(99):
        await site.ask(user, Command.CREATE_TOKEN, CreateTokenRequest(f"n{number}", 0))
    with site.refuses(Code.TOKENS_LIMIT_REACHED):
        await site.ask(user, Command.CREATE_TOKEN, CreateTokenRequest("more", 0))


async def test_tokens_go_with_their_user(site: Site) -> None:
    client, name = await made(site)
    user = await site.connect(name, PASSWORD)
    raw = (await site.ask(user, Command.CREATE_TOKEN, CreateTokenRequest("one", 0))).token
    await client.delete_user(name)
    with site.refuses(0, eviction=WRONG_TOKEN):
        await connect_with(site, raw)
