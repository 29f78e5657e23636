"""Which sends have a route, and when it is looked for anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.load import LoadMeter
from shardserver.core.sessions import Connection, Sessions
from shardserver.errors import NotOwnerError
from shardserver.net import routes
from shardserver.net.routes import Routes
from shardserver.protocol.messages import KIND_BALANCED, KIND_KEY, KIND_PARTITION, SendRequest
from shardserver.protocol.sends import Target


class World:
    """Shard 1 of 3; topic `t` of stream `s` has partition 0 on shard 0, 1 and 2 here, and 3 on shard 2 (gone)."""

    def __init__(self) -> None:
        self.metadata = md.Metadata()
        ev.apply(self.metadata, ev.StreamCreated(0, "s", 1))
        ev.apply(self.metadata, ev.TopicCreated(0, 3, "t", 1, {}, [11, 12, 13, 14], [0, 1, 1, 2]))
        self.gone: set[int] = set()
        self.load = LoadMeter(lambda: 0.0)
        self.logs = {uid: Target() for uid in (12, 13)}
        local = SimpleNamespace(log_of=self.log_of, load=self.load)
        remote = {0: SimpleNamespace(target=self.target_elsewhere)}
        shards = SimpleNamespace(number=1, local=local, remote=remote)
        context: Any = SimpleNamespace(metadata=self.metadata, shards=shards)
        self.routes = Routes(context)
        self.sessions = sessions = Sessions(1)
        self.connection: Connection = sessions.connect("127.0.0.1:1", "127.0.0.1")
        sessions.bind(self.connection, md.ROOT_ID, b"c" * 16)

    def target_elsewhere(self, uid: int, unanswered: list[Any]) -> Target:
        assert unanswered is self.connection.unanswered
        return self.logs.setdefault(uid, Target())

    def log_of(self, uid: int) -> Target:
        if uid in self.gone:
            raise NotOwnerError("gone")
        return self.logs[uid]


def key(kind: int = KIND_PARTITION, value: bytes = b"\1\0\0\0", topic: str | int = "t") -> bytes:
    return SendRequest("s", topic, kind, value, 9, b"").encode()[4:-4]


def test_a_partition_of_this_shard_has_a_route_by_name_by_id_and_by_key() -> None:
    world = World()
    found = [world.routes.find(world.connection, one) for one in (key(), key(topic=3))]
    assert found[0] is found[1] and found[0] is not None and found[0].uid == 12
    assert found[0].target is world.logs[12]
    keyed = {getattr(world.routes.find(world.connection, key(KIND_KEY, bytes([n]))), "uid", None) for n in range(20)}
    assert keyed == {11, 12, 13, None}


def test_a_partition_of_another_shard_has_a_route_of_its_own_for_each_connection() -> None:
    world = World()
    first, again = (world.routes.find(world.connection, key(value=b"\0\0\0\0")) for _ in range(2))
    assert first is not None and again is not None and first is not again
    assert first.target is again.target is world.logs[11] and (first.uid, first.crosses_to) == (11, 0)
    here = world.routes.find(world.connection, key())
    assert here is not None and here.crosses_to == -1


def test_there_is_none_for_what_is_elsewhere_unknown_placed_anew_or_refused() -> None:
    world = World()
    assert world.routes.find(world.connection, key(value=b"\3\0\0\0")) is None
    assert world.routes.find(world.connection, key(value=b"\7\0\0\0")) is None
    assert world.routes.find(world.connection, key(topic="other")) is None
    assert world.routes.find(world.connection, key(KIND_BALANCED, b"")) is None
    for raw in (b"", b"\1", key()[:-1], key() + b"\0", bytes(40)):
        assert world.routes.find(world.connection, raw) is None
    world.gone.add(12)
    assert world.routes.find(world.connection, key()) is None
    world.connection.user_id = 7  # has no permission
    assert world.routes.find(world.connection, key(value=b"\2\0\0\0")) is None
    world.connection.session = 0
    assert world.routes.find(world.connection, key(value=b"\2\0\0\0")) is None


def test_a_change_of_metadata_makes_new_routes() -> None:
    world = World()
    first = world.routes.find(world.connection, key())
    ev.apply(world.metadata, ev.StreamCreated(1, "other", 1))
    assert world.routes.find(world.connection, key()) is not first


def test_what_was_found_is_shared_by_the_connections_of_one_user_until_metadata_changes() -> None:
    world = World()
    here, elsewhere = key(), key(value=b"\0\0\0\0")
    found = [world.routes.find(world.connection, one) for one in (here, elsewhere)]
    second, stranger = (world.sessions.connect(f"127.0.0.1:{port}", "127.0.0.1") for port in (2, 3))
    assert not any(map(len, world.routes.shared(second)))  # not logged in
    for one, user_id in (second, md.ROOT_ID), (stranger, 7):
        world.sessions.bind(one, user_id, b"c" * 16)
    shared = world.routes.shared(second)[0]
    assert shared.get(here) is found[0]
    assert len(shared) == 1  # a crossing one is of its connection alone
    assert not any(map(len, world.routes.shared(stranger)))
    ev.apply(world.metadata, ev.StreamCreated(1, "other", 1))
    assert not any(map(len, world.routes.shared(second)))


def test_shared_routes_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "SHARED_KEYS", 2)
    world = World()
    for value in range(9):
        world.routes.find(world.connection, key(KIND_KEY, bytes([value])))
        assert len(world.routes.shared(world.connection)[0]) <= 2
