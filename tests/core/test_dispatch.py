"""Which command gets which kind of answer: before login, without a row, without a handler, without a permission."""

import asyncio
from types import SimpleNamespace

import pytest

from shardserver.core import dispatch
from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.authentication import PasswordVerifier
from shardserver.core.changes import WriterChanges
from shardserver.core.dispatch import CHANGES, READS, Dispatcher
from shardserver.core.groups.coordinator import GroupKey
from shardserver.core.load import LoadMeter
from shardserver.core.local_owner import LocalOwner
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.planners import PLANNERS
from shardserver.core.replication import Replication
from shardserver.core.sessions import Connection, Sessions
from shardserver.core.shards import Shards
from shardserver.errors import (
    ArenaFullError,
    BackpressureError,
    Code,
    NotCommittedError,
    RejectedError,
    ShardServerError,
)
from shardserver.protocol.addresses import GroupAddress
from shardserver.protocol.frame import Eviction, Frame, RequestHeader, decode_answer, encode_request, split_result
from shardserver.protocol.messages import SendRequest
from shardserver.protocol.table import OP_READ, OP_SEND, TABLE, Command, Right, find_row
from tests.batches import make_batch

CLIENT = b"\x07" + bytes(15)


class MemoryStore:
    """A MetadataStore that keeps its records in memory."""

    record_bytes = 0

    def __init__(self) -> None:
        self.records: list[bytes] = []

    async def append(self, payload: bytes) -> int:
        self.records.append(payload)
        return len(self.records)

    async def replay(self, *, read_only: bool = False) -> tuple[bytes | None, list[bytes]]:
        return None, self.records

    async def snapshot(self, payload: bytes) -> None:
        raise AssertionError("never this many bytes")


class World:
    """A dispatcher with a replica and sessions, and one connection. user None: not logged in."""

    def __init__(self, user: int | None) -> None:
        self.store = MemoryStore()
        writer = MetadataWriter(self.store, lambda: 1)
        ev.apply(writer.metadata, ev.StreamCreated(0, "orders", 1))
        ev.apply(writer.metadata, ev.TopicCreated(0, 0, "events", 1, {}, [1], [0]))
        for id, name in (md.ROOT_ID, "iggy"), *([] if user in (None, md.ROOT_ID) else [(user, "alice")]):
            ev.apply(writer.metadata, ev.UserCreated(md.User(id, name, 1, "")))
        sessions = Sessions(0)
        sessions.begin(1)
        self.connection: Connection = sessions.connect("127.0.0.1:1", "127.0.0.1")
        if user is not None:
            sessions.bind(self.connection, user, CLIENT, writer.metadata.users[user].epoch)
        self.local = LocalOwner(LoadMeter(lambda: 0.0))
        shards = Shards(0, 1, self.local, None, sessions)
        changes = WriterChanges(writer, Replication(writer, None, read_only=False), PasswordVerifier())
        context = SimpleNamespace(metadata=writer.metadata, changes=changes, sessions=sessions, shards=shards)
        self.context = context
        self.dispatcher = Dispatcher(context)  # type: ignore[arg-type]
        self.closes = False

    def ask(self, operation: int, code: int = 0, body: bytes = b"") -> bytes:
        raw = memoryview(encode_request(operation, code, body, client=CLIENT, request=1, session=1))
        answers: list = []

        def reply(buffers: list, closes: bool) -> None:
            answers.append(b"".join(buffers))
            self.closes = closes

        async def run() -> None:
            self.dispatcher.start(self.connection, Frame(RequestHeader.decode(raw), raw[256:]), reply)
            while not answers:
                await asyncio.sleep(0)

        asyncio.run(run())
        assert len(answers) == 1
        return answers[0]

    def status(self, operation: int, code: int = 0, body: bytes = b"") -> int:
        header = decode_answer(self.ask(operation, code, body))
        return -header.reason if isinstance(header, Eviction) else header.status


def test_every_command_is_served_or_known_not_to_be() -> None:
    open_to_all = {row.command for row in TABLE.values() if row.right is Right.OPEN}
    served = set(READS) | set(PLANNERS) | set(CHANGES) | open_to_all | {Command.SEND_MESSAGES}
    assert not (set(READS) & set(PLANNERS) or set(READS) & set(CHANGES))
    names = {command.name for command in set(TABLE) - served}
    groups = {name for name in names if "GROUP" in name}
    assert names - groups == {"FLUSH"}


def test_each_row_is_found_by_what_a_header_says() -> None:
    for row in TABLE.values():
        found = find_row(row.operation, row.command)
        assert found is row or row.command is Command.LOGIN_WITH_TOKEN
    assert find_row(OP_READ, 60_000) is None
    assert find_row(OP_READ, Command.CREATE_STREAM) is None
    assert find_row(0, 0) is None


def test_before_login_only_ping_and_logout_are_answered() -> None:
    world = World(user=None)
    assert world.status(OP_READ, Command.PING) == 0
    assert world.status(3) == 0
    assert world.status(OP_READ, Command.GET_ME) == Code.UNAUTHENTICATED
    assert world.status(OP_READ, 60_000) == Code.UNAUTHENTICATED
    assert world.status(OP_READ, 38) == world.status(OP_READ, 44) == -15
    assert world.status(128) == world.status(160) == world.status(99) == -1


def test_a_row_without_handler_is_code_5_and_no_row_is_code_3() -> None:
    world = World(user=md.ROOT_ID)
    unserved = [row for row in TABLE.values() if row.command not in READS | PLANNERS | CHANGES]
    for row in unserved:
        if row.right is not Right.OPEN and row.command is not Command.SEND_MESSAGES:
            assert world.status(row.operation, row.command) == Code.FEATURE_UNAVAILABLE, row.command
    assert world.status(OP_READ, 60_000) == world.status(99) == world.status(163) == Code.INVALID_COMMAND


def test_a_body_that_cannot_be_decoded_is_answered_and_ends_nothing() -> None:
    world = World(user=md.ROOT_ID)
    assert world.status(OP_READ, Command.GET_STREAM, b"\x02\x09short") == Code.INVALID_COMMAND
    assert world.status(OP_READ, Command.GET_STREAM, b"\x03\x01x") == Code.INVALID_IDENTIFIER
    assert split_result(memoryview(world.ask(128, body=b""))[256:])[0] == [(0, Code.INVALID_COMMAND)]
    assert world.connection.is_bound


def test_a_user_without_permissions_is_refused_in_the_status_of_a_read_and_the_result_of_a_change() -> None:
    world = World(user=1)
    assert world.status(OP_READ, Command.GET_STREAM, b"\x02\x06orders") == Code.UNAUTHORIZED
    assert world.status(160, body=SendRequest(0, 0, 1, b"", 1, b"").encode()) == Code.UNAUTHORIZED
    assert world.status(160, body=SendRequest(0, 9, 1, b"", 1, b"").encode()) == Code.TOPIC_NOT_FOUND
    answer = memoryview(world.ask(128, body=b"\x04mine"))
    assert split_result(answer[256:])[0] == [(0, Code.UNAUTHORIZED)]
    assert world.store.records == []
    missing = memoryview(world.ask(130, body=b"\x02\x04nope"))
    assert split_result(missing[256:])[0] == [(0, Code.STREAM_NOT_FOUND)]


def test_root_changes_metadata() -> None:
    world = World(user=md.ROOT_ID)
    assert split_result(memoryview(world.ask(128, body=b"\x04mine"))[256:])[0] == []
    assert len(world.store.records) == 1


@pytest.mark.parametrize("later", [False, True])
def test_a_bug_in_a_handler_is_answered_1_and_closes_the_connection(later: bool, monkeypatch) -> None:
    async def fail_later() -> list:
        raise ZeroDivisionError

    def fail(context, connection, request):
        if later:
            return fail_later()
        raise ZeroDivisionError

    monkeypatch.setitem(dispatch.READS, Command.GET_STREAMS, fail)
    world = World(md.ROOT_ID)
    assert world.status(OP_READ, Command.GET_STREAMS) == Code.ERROR
    assert world.closes
    assert world.status(OP_READ, Command.GET_CLIENTS) == 0
    assert not world.closes


def test_a_bug_amid_an_append_fences_its_partition() -> None:
    world = World(md.ROOT_ID)
    fenced: list = []

    def append(*arguments: object) -> None:
        raise ZeroDivisionError

    partition = SimpleNamespace(append=append, fence_after_bug=lambda what, error: fenced.append(error))
    logs = SimpleNamespace(partition=lambda uid: partition, copy_batch=bytearray)
    world.local.logs = logs  # type: ignore[assignment]
    body = SendRequest(0, 0, 2, bytes(4), 1, bytes(make_batch([b"hello"]))).encode()
    assert world.status(OP_SEND, 0, body) == Code.ERROR
    assert world.closes and len(fenced) == 1


def test_a_send_without_room_in_memory_is_answered_with_try_again_and_fences_nothing() -> None:
    world = World(md.ROOT_ID)

    def refuse(batch: memoryview) -> None:
        raise ArenaFullError("no room")

    world.context.logs = SimpleNamespace(copy_batch=refuse)
    world.context.log_of = lambda partition: SimpleNamespace()
    body = SendRequest(0, 0, 2, bytes(4), 1, bytes(make_batch([b"hello"]))).encode()
    assert world.status(OP_SEND, 0, body) == Code.TRANSIENT_NOT_ACCEPTED
    assert not world.closes


@pytest.mark.parametrize(
    "name", ["orders", "../orders", "/etc/passwd", "orders\0", "ORDERS", "orders/events", "x" * 255]
)
def test_a_user_without_permissions_reaches_no_data_by_any_name(name: str) -> None:
    world = World(user=1)
    raw = name.encode()
    stream, topic = bytes([2, len(raw)]) + raw, b"\x02\x06events"
    for command, body in (
        (Command.GET_STREAM, stream),
        (Command.GET_TOPICS, stream),
        (Command.GET_TOPIC, stream + topic),
    ):
        answer = world.ask(OP_READ, command, body)
        status = world.status(OP_READ, command, body)
        assert status == Code.UNAUTHORIZED if name == "orders" else b"events" not in answer
    refusals = split_result(memoryview(world.ask(130, body=stream))[256:])[0]
    assert refusals == [(0, Code.UNAUTHORIZED if name == "orders" else Code.STREAM_NOT_FOUND)]
    assert world.store.records == []


class ScriptedGroups:
    """Leaves end as told, one after another."""

    def __init__(self, *outcomes: ShardServerError | None) -> None:
        self.outcomes = list(outcomes)

    async def leave(self, connection: Connection, key: GroupKey) -> None:
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome


NOT_A_MEMBER = RejectedError(Code.GROUP_MEMBER_NOT_FOUND)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([None], [0, 0, 0]),
        ([NotCommittedError(), None], [57, 0, 0]),
        ([NotCommittedError(), NOT_A_MEMBER], [57, 0, 0]),
        ([NotCommittedError(), NotCommittedError(), NOT_A_MEMBER], [57, 57, 0]),
        ([BackpressureError(), NOT_A_MEMBER, NOT_A_MEMBER], [58, 5006, 5006]),
    ],
)
def test_a_repeated_leave_is_answered_as_what_became_of_the_first(
    outcomes: list[ShardServerError | None], expected: list[int]
) -> None:
    world = World(user=md.ROOT_ID)
    ev.apply(world.context.metadata, ev.GroupCreated(0, 0, 0, "g", 1))
    ev.apply(world.context.metadata, ev.GroupCreated(0, 0, 1, "h", 1))
    world.context.groups = groups = ScriptedGroups(*outcomes)
    leave = GroupAddress(0, 0, "g").encode()
    assert [world.status(149, body=leave) for _ in expected] == expected
    assert groups.outcomes == []
    if expected[-1] == 0:  # the number is taken, by another body too
        assert world.status(149, body=GroupAddress(0, 0, "h").encode()) == Code.INVALID_FORMAT
