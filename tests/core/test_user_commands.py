"""Users, tokens and permissions as changes of the metadata: what is refused, what ends, what nobody inherits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.authentication import PasswordVerifier
from shardserver.core.changes import ChangeRequest, WriterChanges
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_snapshot import Snapshot, decode_snapshot, encode_snapshot
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.permissions import check_right
from shardserver.core.planners import PLANNERS
from shardserver.core.planning import PlanContext
from shardserver.core.replication import Replication
from shardserver.core.sessions import Sessions
from shardserver.core.user_commands import TOKENS_OF_A_USER, details_of, expire_tokens, token_hash
from shardserver.errors import Code, RejectedError
from shardserver.protocol.addresses import StreamAddress, TopicAddress, UserAddress
from shardserver.protocol.frame import request_checksum
from shardserver.protocol.permissions import GlobalPermissions, Permissions, StreamPermissions, TopicPermissions
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import TABLE, Command
from shardserver.protocol.tokens import CreateTokenRequest, DeleteTokenRequest, RawToken
from shardserver.protocol.users import (
    ChangePasswordRequest,
    CreateUserRequest,
    UpdatePermissionsRequest,
    UpdateUserRequest,
    UserDetails,
)
from tests.core.test_dispatch import MemoryStore

ADMIN = Permissions(GlobalPermissions(manage_users=True))
CLIENT = b"c" * 16
NOW = 1_000


class World:
    """A replica with root, and alice who manages users."""

    def __init__(self) -> None:
        self.metadata = Metadata()
        ev.apply(self.metadata, ev.UserCreated(md.User(md.ROOT_ID, "iggy", 1, "root's hash")))
        self.do(Command.CREATE_USER, CreateUserRequest("alice", "hash", 1, ADMIN, {}))

    def do(self, command: Command, request: Any, *, user: int = 0, now: int = NOW, client: bytes = CLIENT) -> bytes:
        plan = PLANNERS[command](self.metadata, request, PlanContext(now, user_id=user, client=client))
        for event in plan.events:
            ev.apply(self.metadata, event)
        return plan.reply

    def refusal(self, command: Command, request: Any, *, user: int = 0) -> int:
        with pytest.raises(RejectedError) as caught:
            self.do(command, request, user=user)
        return int(caught.value.code)

    def token(self, name: str, *, user: int = 1, expiry: int = 0, now: int = NOW) -> str:
        reply = self.do(Command.CREATE_TOKEN, CreateTokenRequest(name, expiry), user=user, now=now)
        return RawToken.decode(memoryview(reply)).token


def test_a_user_has_the_lowest_free_id_and_its_reply_tells_what_it_is() -> None:
    world = World()
    reply = world.do(Command.CREATE_USER, CreateUserRequest("bob", "hash", 2, None, {}))
    told = UserDetails.decode(memoryview(reply))
    assert (told.header.id, told.header.username, told.header.status, told.header.created_at) == (2, "bob", 2, NOW)
    world.do(Command.DELETE_USER, UserAddress("alice"))
    world.do(Command.CREATE_USER, CreateUserRequest("carol", "hash", 1, None, {}))
    assert world.metadata.user_ids == {"iggy": 0, "carol": 1, "bob": 2}


def test_names_are_taken_once_and_objects_that_are_not_there_are_told() -> None:
    world = World()
    assert world.refusal(Command.CREATE_USER, CreateUserRequest("alice", "h", 1, None, {})) == 46
    assert world.refusal(Command.UPDATE_USER, UpdateUserRequest("alice", "iggy", None, {})) == 46
    assert world.refusal(Command.UPDATE_USER, UpdateUserRequest("nobody", None, 1, {})) == 20
    assert world.refusal(Command.DELETE_USER, UserAddress(7)) == 20
    assert world.refusal(Command.UPDATE_PERMISSIONS, UpdatePermissionsRequest(7, None)) == 20
    assert world.refusal(Command.CREATE_USER, CreateUserRequest("bob", "h", 1, None, {"a": "b"})) == 4041
    world.do(Command.UPDATE_USER, UpdateUserRequest("alice", "alice", None, {}))  # her own name is no other's
    world.do(Command.UPDATE_USER, UpdateUserRequest("alice", "eve", None, {}))
    assert world.metadata.user_ids == {"iggy": 0, "eve": 1}


def test_root_cannot_be_deleted_disabled_or_stripped() -> None:
    world = World()
    assert world.refusal(Command.DELETE_USER, UserAddress(0)) == 48
    assert world.refusal(Command.UPDATE_USER, UpdateUserRequest(0, None, 2, {})) == 49
    assert world.refusal(Command.UPDATE_PERMISSIONS, UpdatePermissionsRequest("iggy", None)) == 49
    world.do(Command.UPDATE_USER, UpdateUserRequest(0, "admin", 1, {}))
    assert world.metadata.users[0].name == "admin"


# Tokens


def test_a_token_is_told_once_and_kept_as_a_hash() -> None:
    world = World()
    raw = world.token("ci", expiry=5)
    assert len(raw) == 68
    kept = world.metadata.users[1].tokens["ci"]
    assert (kept.hash, kept.expires_at) == (token_hash(raw), NOW + 5)
    assert world.metadata.token_owners == {kept.hash: (1, "ci")}
    assert raw.encode() not in ev.encode_change(ev.Change([ev.TokenCreated(1, kept)]))


def test_tokens_have_limits() -> None:
    world = World()
    world.token("ci")
    assert world.refusal(Command.CREATE_TOKEN, CreateTokenRequest("ci", 0), user=1) == 51
    assert world.refusal(Command.CREATE_TOKEN, CreateTokenRequest("long", (1 << 64) - 2), user=1) == 56
    for number in range(TOKENS_OF_A_USER - 1):
        world.token(f"t{number}")
    assert world.refusal(Command.CREATE_TOKEN, CreateTokenRequest("more", 0), user=1) == 52
    assert world.refusal(Command.DELETE_TOKEN, DeleteTokenRequest("more"), user=1) == 20
    world.do(Command.DELETE_TOKEN, DeleteTokenRequest("ci"), user=1)
    world.token("more")


def test_tokens_whose_time_is_over_are_forgotten() -> None:
    world = World()
    kept = [world.token("never"), world.token("later", expiry=100)]
    world.token("over", expiry=10)
    assert expire_tokens(world.metadata, PlanContext(NOW + 9)).events == []
    for event in expire_tokens(world.metadata, PlanContext(NOW + 10)).events:
        ev.apply(world.metadata, event)
    assert set(world.metadata.token_owners) == {token_hash(one) for one in kept}


# What ends


def end_alice(world: World, how: str, client: bytes = CLIENT) -> None:
    match how:
        case "deleted":
            world.do(Command.DELETE_USER, UserAddress(1), client=client)
        case "deactivated":
            world.do(Command.UPDATE_USER, UpdateUserRequest(1, None, 2, {}), client=client)
        case "password":
            for event in (ev.PasswordSet(1, "new"), ev.AccessEnded(1, client)):
                ev.apply(world.metadata, event)


@pytest.mark.parametrize("how", ["deleted", "deactivated", "password"])
def test_sessions_and_tokens_of_a_user_end_but_for_the_callers(how: str) -> None:
    world, sessions = World(), Sessions(0)
    sessions.begin(1)
    others, hers, caller = (sessions.connect(f"127.0.0.1:{port}", "127.0.0.1") for port in (1, 2, 3))
    for one, user, client in (others, 0, b"o" * 16), (hers, 1, b"h" * 16), (caller, 1, CLIENT):
        sessions.bind(one, user, client, world.metadata.users[user].epoch)
    world.token("ci")
    sessions.end_stale(world.metadata)
    assert hers.is_bound
    end_alice(world, how)
    sessions.end_stale(world.metadata)
    assert others.is_bound and not hers.is_bound and hers.ended_by == 1
    assert caller.is_bound is (how != "deleted")
    assert world.metadata.token_owners == {}
    sessions.end_stale(world.metadata)  # and again, as after a new replica
    assert caller.is_bound is (how != "deleted")


def test_a_session_of_a_user_that_is_gone_is_not_another_users_with_its_id() -> None:
    world, sessions = World(), Sessions(0)
    sessions.begin(1)
    hers = sessions.connect("127.0.0.1:1", "127.0.0.1")
    sessions.bind(hers, 1, b"h" * 16, world.metadata.users[1].epoch)
    end_alice(world, "deleted")
    world.do(Command.CREATE_USER, CreateUserRequest("bob", "hash", 1, ADMIN, {}))
    sessions.end_stale(world.metadata)  # both at once, as of a new replica
    assert not hers.is_bound


# Permissions


def with_topic(world: World) -> None:
    ev.apply(world.metadata, ev.StreamCreated(0, "orders", 1))
    ev.apply(world.metadata, ev.TopicCreated(0, 0, "events", 1, {}, [], []))


TREE = Permissions(streams={0: StreamPermissions(read_stream=True, topics={0: TopicPermissions(manage_topic=True)})})


def may(world: World, command: Command, request: Any) -> bool:
    try:
        check_right(world.metadata, 1, TABLE[command], request)
    except RejectedError as error:
        assert error.code is Code.UNAUTHORIZED
        return False
    return True


def told_permissions(world: World) -> Permissions | None:
    return details_of(world.metadata, world.metadata.users[1]).permissions


def test_what_is_made_again_under_an_id_inherits_nothing() -> None:
    world = World()
    with_topic(world)
    world.do(Command.UPDATE_PERMISSIONS, UpdatePermissionsRequest(1, TREE))
    assert told_permissions(world) == TREE
    assert may(world, Command.DELETE_TOPIC, TopicAddress(0, 0)) and may(world, Command.GET_STREAM, StreamAddress(0))
    ev.apply(world.metadata, ev.TopicDeleted(0, 0))
    ev.apply(world.metadata, ev.TopicCreated(0, 0, "events", 1, {}, [], []))
    assert not may(world, Command.DELETE_TOPIC, TopicAddress(0, 0))
    ev.apply(world.metadata, ev.StreamDeleted(0))
    with_topic(world)
    assert not may(world, Command.GET_STREAM, StreamAddress(0))
    assert told_permissions(world) == Permissions()


def test_permissions_for_what_is_not_there_are_told_and_never_come_alive() -> None:
    world = World()
    world.do(Command.UPDATE_PERMISSIONS, UpdatePermissionsRequest(1, TREE))
    assert told_permissions(world) == TREE
    with_topic(world)
    assert told_permissions(world) == Permissions()
    assert not may(world, Command.GET_STREAM, StreamAddress(0))


def test_permissions_follow_a_rename() -> None:
    world = World()
    with_topic(world)
    world.do(Command.UPDATE_PERMISSIONS, UpdatePermissionsRequest(1, TREE))
    ev.apply(world.metadata, ev.StreamRenamed(0, "sales"))
    assert may(world, Command.GET_STREAM, StreamAddress("sales"))


def test_numbers_are_the_same_wherever_the_events_are_applied_and_after_a_snapshot() -> None:
    world = World()
    with_topic(world)
    world.token("ci")
    again = decode_snapshot(encode_snapshot(Snapshot(world.metadata, []))).metadata
    for metadata in world.metadata, again:
        ev.apply(metadata, ev.StreamCreated(1, "more", 1))
    assert again == world.metadata
    assert (again.user_ids, again.token_owners) == (world.metadata.user_ids, world.metadata.token_owners)


# Passwords, through the writer


class Passwords:
    """A writer with real hashes: root, alice who manages users, bob who does not."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.writer = MetadataWriter(self.store, lambda: NOW)
        self.verifier = PasswordVerifier()
        self.changes = WriterChanges(self.writer, Replication(self.writer, None, read_only=False), self.verifier)
        ev.apply(self.writer.metadata, ev.UserCreated(md.User(md.ROOT_ID, "iggy", 1, "")))
        self._request = 0

    async def do(self, command: Command, request: Any, *, user: int = 0) -> None:
        self._request += 1
        await self.changes.change(ChangeRequest(command, user, request.encode(), CLIENT, self._request))

    async def refusal(self, request: Any, *, user: int) -> int:
        with pytest.raises(RejectedError) as caught:
            await self.do(Command.CHANGE_PASSWORD, request, user=user)
        return int(caught.value.code)

    async def fits(self, user: int, password: str) -> bool:
        return await self.verifier.verify(self.writer.metadata.users[user].password_hash, password)


def with_passwords(work: Callable[[Passwords], Any]) -> Passwords:
    async def run() -> Passwords:
        made = Passwords()
        await made.do(Command.CREATE_USER, CreateUserRequest("alice", "alice's", 1, ADMIN, {}))
        await made.do(Command.CREATE_USER, CreateUserRequest("bob", "bob's", 1, None, {}))
        await work(made)
        made.verifier.close()
        return made

    return asyncio.run(run())


def test_a_current_password_that_is_given_must_fit_and_ones_own_must_be_given() -> None:
    async def work(made: Passwords) -> None:
        assert await made.refusal(ChangePasswordRequest("bob", "wrong", "new"), user=1) == 42
        assert await made.refusal(ChangePasswordRequest("bob", "", "new"), user=2) == 42
        assert await made.refusal(ChangePasswordRequest("alice", "", "new"), user=1) == 42
        assert await made.refusal(ChangePasswordRequest("alice", "alice's", "new"), user=2) == 41
        assert await made.refusal(ChangePasswordRequest("nobody", "", "new"), user=1) == 20
        await made.do(Command.CHANGE_PASSWORD, ChangePasswordRequest("bob", "bob's", "his own"), user=2)
        assert await made.fits(2, "his own") and not await made.fits(2, "bob's")

    with_passwords(work)


def test_who_manages_users_resets_anothers_password() -> None:
    async def work(made: Passwords) -> None:
        await made.do(Command.CHANGE_PASSWORD, ChangePasswordRequest("bob", "", "reset"), user=1)
        assert await made.fits(2, "reset")

    with_passwords(work)


def test_a_repeat_gets_its_first_answer_whatever_the_change_has_taken() -> None:
    async def work(made: Passwords) -> None:
        change = ChangePasswordRequest("bob", "bob's", "his own")
        await made.do(Command.CHANGE_PASSWORD, change, user=2)
        made._request -= 1
        await made.do(Command.CHANGE_PASSWORD, change, user=2)  # the current password is another one by now
        drop = UpdatePermissionsRequest("alice", None)
        await made.do(Command.UPDATE_PERMISSIONS, drop, user=1)
        made._request -= 1
        await made.do(Command.UPDATE_PERMISSIONS, drop, user=1)  # she may not any more

    with_passwords(work)


@pytest.mark.parametrize(
    ("command", "first", "other"),
    [
        (Command.CREATE_USER, CreateUserRequest("carol", "hers", 1, None, {}), {"password": "his"}),
        (Command.CREATE_USER, CreateUserRequest("carol", "hers", 1, None, {}), {"status": 2}),
        (Command.CHANGE_PASSWORD, ChangePasswordRequest("bob", "", "reset"), {"new": "another"}),
        (Command.CHANGE_PASSWORD, ChangePasswordRequest("bob", "", "reset"), {"user": "alice"}),
        (Command.CREATE_STREAM, CreateStreamRequest("s", {}), {"name": "t"}),
    ],
)
def test_a_number_that_comes_with_another_body_is_no_repeat(command: Command, first: Any, other: Any) -> None:
    async def work(made: Passwords) -> None:
        await made.do(command, first)
        made._request -= 1
        await made.do(command, first)
        made._request -= 1
        with pytest.raises(RejectedError) as caught:
            await made.do(command, replace(first, **other))
        assert caught.value.code is Code.INVALID_FORMAT

    with_passwords(work)


def test_what_a_session_asked_whose_user_is_gone_is_not_done_for_the_next_one() -> None:
    async def work(made: Passwords) -> None:
        epoch = made.writer.metadata.users[2].epoch
        await made.do(Command.DELETE_USER, UserAddress("bob"))
        body = CreateTokenRequest("ci", 0).encode()
        asked = ChangeRequest(Command.CREATE_TOKEN, 2, body, b"b" * 16, 1, user_epoch=epoch)
        for _ in range(2):
            with pytest.raises(RejectedError) as caught:
                await made.changes.change(asked)
            assert caught.value.code is Code.UNAUTHENTICATED
            if 2 not in made.writer.metadata.users:
                await made.do(Command.CREATE_USER, CreateUserRequest("carol", "hers", 1, None, {}))
        assert made.writer.metadata.users[2].tokens == {}

    with_passwords(work)


def test_no_password_and_no_token_is_written_and_no_checksum_of_one() -> None:
    change = ChangePasswordRequest("bob", "bob's", "bob's next")

    async def work(made: Passwords) -> None:
        await made.do(Command.CHANGE_PASSWORD, change, user=2)
        await made.do(Command.CREATE_TOKEN, CreateTokenRequest("ci", 0), user=2)

    made = with_passwords(work)
    (token,) = made.writer.metadata.users[2].tokens.values()
    written = b"".join(made.store.records) + made.writer.snapshot_payload()
    assert token.hash in written
    for secret in (b"alice's", b"bob's", request_checksum(change.encode())):
        assert secret not in written
    last = ev.decode_change(made.store.records[-1])
    assert (last.client, last.reply) == (b"", b"")
