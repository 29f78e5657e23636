"""Codes and evictions that need a full stream, a long silence, a disk without room or a damaged one, by frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardserver.client.connection import RequestRefusedError
from shardserver.errors import Code
from shardserver.protocol.addresses import GroupAddress
from shardserver.protocol.frame import encode_request
from shardserver.protocol.groups import CreateGroupRequest
from shardserver.protocol.login import PROTOCOL_VERSION, LoginRequest
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import TABLE, Command
from shardserver.protocol.tokens import CreateTokenRequest
from shardserver.protocol.topics import CreateTopicRequest
from tests.conformance.conftest import note
from tests.conformance.site import FULL, LAYOUTS, Site, TappedServer
from tests.conformance.tap import EVICTED
from tests.supervisor.servers import wait_until
from tests.wire_connection import WireConnection, send_request

RESULTS_OF = "frames"
EXPIRED_TOKEN, STALE = 11, 13
TOPICS_OF_A_STREAM = 4096
MANY_TOPICS_A_TIME = 64
TRANSIENT = (Code.TRANSIENT_NOT_COMMITTED, Code.TRANSIENT_NOT_ACCEPTED)
MOST_BYTES = (1 << 63) - 1
MakeSite = Callable[[str], Site]


@pytest.fixture
def configured_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeSite]:
    """Takes more of the configuration; the server of 2 shards is the test's own."""
    made: list[TappedServer] = []

    def make(config: str) -> Site:
        made.append(TappedServer(tmp_path, 2, 0, config))
        return Site(made[0])

    yield make
    for one in made:
        note(request, one)
        one.close()


def code_of_last(site: Site, command: Command) -> int | str:
    return site.exchanges(command)[-1].code


def make_topic(connection: WireConnection, stream: str, partitions: int = 1) -> None:
    connection.ask(Command.CREATE_STREAM, CreateStreamRequest(stream, {}))
    connection.ask(Command.CREATE_TOPIC, CreateTopicRequest(stream, partitions, "t", {}))


def test_a_repeat_whose_reply_is_no_longer_kept_is_told_so(site: Site) -> None:
    with WireConnection(site.address) as connection:
        _, first = connection.frame(Command.CREATE_STREAM, CreateStreamRequest(f"{site.stream}-0", {}))
        connection.write_bytes(first)
        connection.read_answer()
        for number in range(1, 6):
            connection.ask(Command.CREATE_STREAM, CreateStreamRequest(f"{site.stream}-{number}", {}))
        connection.write_bytes(first)
        connection.read_answer()
    assert code_of_last(site, Command.CREATE_STREAM) == Code.REQUEST_ALREADY_APPLIED


def ask_all(connection: WireConnection, frames: list[bytes]) -> None:
    """All at once; those that are answered 57 or 58 once more, as SDKs do."""
    while frames:
        connection.write_bytes(b"".join(frames))
        frames = [frame for frame in frames if connection.read_answer().header.status in TRANSIENT]


@pytest.mark.skipif(LAYOUTS != FULL, reason="up to a minute: CONFORMANCE=full")
def test_a_stream_holds_4096_topics(configured_site: MakeSite) -> None:
    site = configured_site("")
    with WireConnection(site.address) as connection:
        connection.ask(Command.CREATE_STREAM, CreateStreamRequest(site.stream, {}))
        for first in range(0, TOPICS_OF_A_STREAM, MANY_TOPICS_A_TIME):
            names = [f"t{number}" for number in range(first, first + MANY_TOPICS_A_TIME)]
            requests = [CreateTopicRequest(site.stream, 0, name, {}) for name in names]
            ask_all(connection, [connection.frame(Command.CREATE_TOPIC, one)[1] for one in requests])
        assert {one.code for one in site.exchanges(Command.CREATE_TOPIC)} <= {0, *TRANSIENT}
        with pytest.raises(RequestRefusedError):
            connection.ask(Command.CREATE_TOPIC, CreateTopicRequest(site.stream, 0, "one more", {}))
        assert code_of_last(site, Command.CREATE_TOPIC) == Code.TOO_MANY_TOPICS


def test_an_expired_token_is_evicted(site: Site) -> None:
    with WireConnection(site.address) as connection:
        token = connection.ask(Command.CREATE_TOKEN, CreateTokenRequest(site.stream, 1)).token
        login = LoginRequest(PROTOCOL_VERSION, "test", "0", None, token).encode()
        operation = TABLE[Command.LOGIN].operation
        connection.log_out()
        connection.write_bytes(encode_request(operation, 0, login, client=b"\x01" * 16, request=0, session=0))
        with pytest.raises(RequestRefusedError):
            connection.read_answer()
    assert code_of_last(site, Command.LOGIN_WITH_TOKEN) == f"{EVICTED} {EXPIRED_TOKEN}"


@pytest.mark.parametrize("command", [Command.GET_ME, Command.SEND_MESSAGES])
def test_a_silent_member_of_a_group_is_evicted_at_its_next_request(command: Command, configured_site: MakeSite) -> None:
    site = configured_site("[groups]\nheartbeat_interval_s = 1.0\n")
    group = GroupAddress(site.stream, "t", "g")
    with WireConnection(site.address) as silent, WireConnection(site.address) as watcher:
        make_topic(watcher, site.stream)
        watcher.ask(Command.CREATE_GROUP, CreateGroupRequest(site.stream, "t", "g"))
        silent.ask(Command.JOIN_GROUP, group)
        send = send_request("t", 0, b"x", stream=site.stream)
        for _ in range(2):  # from then on the server knows where its sends go
            silent.ask(Command.SEND_MESSAGES, send)
        wait_until(lambda: watcher.ask(Command.GET_GROUP, group).header.members_count == 0, "the member stays")
        silent.write(command, send if command is Command.SEND_MESSAGES else None)
        with pytest.raises(RequestRefusedError):
            silent.read_answer()
        assert code_of_last(site, command) == f"{EVICTED} {STALE}"


def test_a_send_below_the_low_watermark_is_refused(configured_site: MakeSite) -> None:
    site = configured_site(f"[storage]\nlow_watermark_bytes = {MOST_BYTES}\n")
    with WireConnection(site.address) as connection:
        make_topic(connection, site.stream)

        def is_refused() -> bool:
            try:
                connection.send_payloads("t", 0, b"x", stream=site.stream)
            except RequestRefusedError:
                return True
            return False

        wait_until(is_refused, "sends are taken")
        assert code_of_last(site, Command.SEND_MESSAGES) == Code.DISK_FULL
        connection.read_all("t", 0, stream=site.stream)  # reads go on


def test_a_poll_of_a_damaged_batch_is_refused(configured_site: MakeSite) -> None:
    site = configured_site("")
    with WireConnection(site.address) as connection:
        make_topic(connection, site.stream)
        for number in range(4):
            connection.send_payloads("t", 0, f"number {number} ".encode().ljust(1 << 20, b"x"), stream=site.stream)
    site.tapped.end(killed=False)
    flip(*place_of(site.tapped.server.data, b"number 1 "))
    site.tapped.start_again()
    with WireConnection(site.address) as connection:
        assert connection.payloads("t", 0, count=1, stream=site.stream)[0].startswith(b"number 0 ")
        with pytest.raises(RequestRefusedError):
            connection.payloads("t", 0, value=1, count=1, stream=site.stream)
        assert code_of_last(site, Command.POLL_MESSAGES) == Code.DAMAGED_BATCH
        assert connection.payloads("t", 0, value=3, count=1, stream=site.stream)[0].startswith(b"number 3 ")


def test_a_send_to_a_partition_that_recovery_has_set_aside_is_refused(configured_site: MakeSite) -> None:
    site = configured_site("")
    with WireConnection(site.address) as connection:
        make_topic(connection, site.stream, partitions=2)
        for partition in range(2):
            payload = f"partition {partition} ".encode().ljust(1 << 20, b"x")
            connection.send_payloads("t", partition, payload, stream=site.stream)
    site.tapped.end(killed=False)
    flip(*place_of(site.tapped.server.data, b"partition 0 "), in_header=True)
    site.tapped.start_again()
    with WireConnection(site.address) as connection:
        with pytest.raises(RequestRefusedError):
            connection.send_payloads("t", 0, b"x", stream=site.stream)
        assert code_of_last(site, Command.SEND_MESSAGES) == Code.IO_ERROR
        with pytest.raises(RequestRefusedError):
            connection.payloads("t", 0, stream=site.stream)
        assert code_of_last(site, Command.POLL_MESSAGES) == Code.DAMAGED_BATCH
        assert connection.send_payloads("t", 1, b"x", stream=site.stream) == 1


def place_of(data: Path, payload: bytes) -> tuple[Path, int]:
    """The segment that holds a message which begins so, and where."""
    (found,) = [
        (file, raw.index(payload))
        for file in (data / "partitions").glob("*/*.log")
        if payload in (raw := file.read_bytes())
    ]
    return found


def flip(file: Path, position: int, *, in_header: bool = False) -> None:
    """A bit of the message there, or of its segment's header."""
    raw = bytearray(file.read_bytes())
    raw[0 if in_header else position + 100] ^= 1
    file.write_bytes(raw)
