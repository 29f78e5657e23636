"""Topics and streams are purged, deleted and made again while producers and consumers are busy with them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardserver.client.connection import RequestRefusedError
from shardserver.errors import ProtocolError
from shardserver.protocol.addresses import StreamAddress, TopicAddress
from shardserver.protocol.messages import FIRST
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer, rule
from tests.supervisor.servers import wait_until
from tests.wire_connection import WireConnection

TOPICS = ("on0", "on1")
CONFIG = "[net]\nhandover_requests = 0\n" + "".join(rule("s", topic, shard) for shard, topic in enumerate(TOPICS))
# A stream, topic or partition that is not there now, or a server that says: try again.
PROPER_CODES = {1009, 2010, 3007, 57, 58}
PAYLOAD_BYTES = 40_000  # several of them at a time make runs of their own, so that segments are there to be removed
CHANGES = 12


class Busy:
    """Producers and consumers in threads of their own. age: rises with each change; messages begin with it."""

    def __init__(self, server: ShardedServer) -> None:
        self.age = 0
        self.codes: Counter[int] = Counter()
        self.sent = self.polled = 0
        self.stale: list[str] = []
        self.is_killed = False
        self._is_over, self._failures = threading.Event(), list[BaseException]()
        self._sending: dict[int, int] = {}
        work = [self._produce, self._produce, self._consume]
        self._threads = [
            threading.Thread(target=self._run, args=(one, server.connect(), topic)) for topic in TOPICS for one in work
        ]

    def start(self) -> None:
        for one in self._threads:
            one.start()

    def note_change(self) -> None:
        """One is made and answered. Returns when no send from before it is under way any more."""
        self.age += 1
        wait_until(lambda: all(age >= self.age for age in list(self._sending.values())), "producers go on")

    def end(self) -> None:
        self._is_over.set()
        for one in self._threads:
            one.join(30)
        if self._failures:
            raise self._failures[0]

    def _run(self, work: Callable[[WireConnection, str], None], connection: WireConnection, topic: str) -> None:
        try:
            while not self._is_over.is_set():
                try:
                    work(connection, topic)
                except RequestRefusedError as refused:
                    self.codes[refused.code] += 1
        except BaseException as failure:
            if not self.is_killed:
                self._failures.append(failure)
        finally:
            self._sending.pop(threading.get_ident(), None)
            connection.close()

    def _produce(self, connection: WireConnection, topic: str) -> None:
        age = self._sending[threading.get_ident()] = self.age
        connection.send_payloads(topic, 0, b"%d " % age + b"x" * PAYLOAD_BYTES)
        self.sent += 1

    def _consume(self, connection: WireConnection, topic: str) -> None:
        """What was sent before the last change but one was answered before the last one: it is gone."""
        oldest = self.age - 1
        for payload in connection.payloads(topic, 0, FIRST, count=5):
            self.polled += 1
            if int(payload.split(b" ")[0]) < oldest:
                self.stale.append(f"{topic}: {payload[:10]!r}, {oldest} is the oldest that may be there")


def make_topics(connection: WireConnection) -> None:
    for topic in TOPICS:
        connection.create_topic("s", topic, 1)


def change(connection: WireConnection, number: int) -> None:
    """All messages of all topics go, one way or another."""
    match number % 4:
        case 0:
            for topic in TOPICS:
                connection.ask(Command.PURGE_TOPIC, TopicAddress("s", topic))
        case 1:
            connection.ask(Command.PURGE_STREAM, StreamAddress("s"))
        case 2:
            for topic in TOPICS:
                connection.ask(Command.DELETE_TOPIC, TopicAddress("s", topic))
            make_topics(connection)
        case 3:
            connection.delete_stream("s")
            connection.create_stream("s")
            make_topics(connection)


def directories(server: ShardedServer) -> set[int]:
    return {int(one.name, 16) for one in (server.data / "partitions").iterdir()}


def live_uids(server: ShardedServer) -> set[int]:
    return {one["uid"] for shard in server.stats() for one in shard["partitions"]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=len(TOPICS), config=CONFIG)
    try:
        yield made.serve()
    finally:
        made.kill()


def begin(server: ShardedServer) -> tuple[WireConnection, Busy]:
    connection = server.connect()
    connection.create_stream("s")
    make_topics(connection)
    busy = Busy(server)
    busy.start()
    return connection, busy


def test_purges_and_deletions_under_load_give_proper_codes_and_leave_nothing_behind(server: ShardedServer) -> None:
    connection, busy = begin(server)
    try:
        for number in range(CHANGES):
            before = busy.sent
            change(connection, number)
            busy.note_change()
            wait_until(lambda before=before: busy.sent > before + 4, "producers are served again")  # type: ignore[misc]
    finally:
        busy.end()
    assert set(busy.codes) <= PROPER_CODES, busy.codes
    assert not busy.stale and busy.polled > CHANGES
    change(connection, 0)
    assert [connection.payloads(topic, 0, FIRST) for topic in TOPICS] == [[], []]
    wait_until(lambda: directories(server) <= live_uids(server), "the files of the dead are removed")
    connection.close()
    assert server.stop() == 0


def test_a_crash_amid_a_change_leaves_the_state_before_or_after_it(server: ShardedServer) -> None:
    connection, busy = begin(server)
    wait_until(lambda: busy.sent > 20, "producers are served")
    made: list[int] = []
    changing = threading.Thread(target=change_until_killed, args=(connection, made))
    changing.start()
    wait_until(lambda: len(made) >= 6, "changes are made")
    busy.is_killed = True
    server.kill()
    changing.join(30)
    busy.end()
    server.serve()
    again = server.connect()
    if again.ask(Command.GET_STREAM, StreamAddress("s")) is None:
        again.create_stream("s")
    for topic in TOPICS:
        if again.ask(Command.GET_TOPIC, TopicAddress("s", topic)) is None:
            again.create_topic("s", topic, 1)
        kept = again.read_all(topic, 0)  # without a gap, or nothing
        assert again.send_payloads(topic, 0, b"after") == len(kept)
    wait_until(lambda: directories(server) <= live_uids(server), "the files of the dead are removed")
    again.close()


def change_until_killed(connection: WireConnection, made: list[int]) -> None:
    try:
        while True:
            change(connection, len(made))
            made.append(len(made))
    except (OSError, ProtocolError):
        connection.close()
