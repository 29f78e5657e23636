"""A server that leaves out a check fails the row; one that makes them all does not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardserver.bench import case_run
from shardserver.bench.case_run import Pace, run_case
from shardserver.bench.own_server import ServerSetup
from shardserver.bench.peers import Peer
from shardserver.bench.plan import LoadSpec, Shape
from shardserver.bench.refusals import NO_SESSION, PROBES, probe_refusals
from shardserver.bench.rows import Case, Figure, Row
from shardserver.bench.session import Session
from shardserver.bench.verdict import WRONG, judge
from shardserver.client.connection import RequestRefusedError
from shardserver.client.requests import PollReply
from shardserver.errors import Code
from shardserver.protocol.batch import verify_batch
from shardserver.protocol.options import OptionValue
from shardserver.protocol.permissions import Permissions
from tests.server_process import PASSWORD, ServerProcess

# Named, not imported: in this process it would change what other tests see.
STALE_ROUTES = "tests.bench.server_with_stale_routes"
SHAPE = Shape.fixed(3, 10)


class StandInServer:
    """One partition a stream, in memory. skips: the checks that it leaves out."""

    def __init__(self, *skips: str | int) -> None:
        self.skips = skips
        self.streams: dict[str, int] = {}  # the next offset
        self.deleted: set[str] = set()
        self.users: dict[str, Permissions | None] = {}

    @contextmanager
    def connect(self, username: str | None = None, password: str | None = None) -> Iterator[StandInClient]:
        yield StandInClient(self, username)


def first_message(batch: bytes) -> bytearray:
    """A batch of that alone; its batch checksum is wrong."""
    alone = bytearray(batch[: 256 + 48 + struct.unpack_from("<I", batch, 256 + 36)[0]])
    struct.pack_into("<Q", alone, 32, len(alone))
    struct.pack_into("<I", alone, 48, 1)
    return alone


class StandInClient:
    def __init__(self, server: StandInServer, user: str | None) -> None:
        self._server, self._user, self._has_session = server, user, True

    def create_stream(self, name: str) -> int:
        self._server.streams[name] = 0
        return 7

    def delete_stream(self, stream: str) -> None:
        del self._server.streams[stream]

    def create_topic(self, stream: str, name: str, partitions: int, options: dict[str, OptionValue] | None) -> int:
        assert (partitions, options) == (1, {"durability": "memory"})
        return 0

    def delete_topic(self, stream: str, topic: str) -> None:
        if "delete" not in self._server.skips:
            self._server.deleted.add(stream)

    def purge_topic(self, stream: str, topic: str) -> None:
        if "purge" not in self._server.skips:
            self._server.streams[stream] = 0

    def create_user(self, username: str, password: str, permissions: Permissions | None) -> None:
        self._server.users[username] = permissions

    def delete_user(self, user: str) -> None:
        del self._server.users[user]

    def set_permissions(self, user: str, permissions: Permissions | None) -> None:
        if "permission" not in self._server.skips:
            self._server.users[user] = permissions

    def log_out(self) -> None:
        self._has_session = "logout" in self._server.skips

    def send(self, stream: str, topic: str, partition: int, batch: bytes, count: int) -> int:
        code = self._refusal(stream, batch, count)
        if code and code not in self._server.skips:
            if "trace" in self._server.skips:
                self._server.streams[stream] += count
            raise RequestRefusedError(code, "send")
        base = self._server.streams[stream]
        self._server.streams[stream] += count
        return base

    def _refusal(self, stream: str, batch: bytes, count: int) -> int:
        if not self._has_session:
            return NO_SESSION
        if self._user is not None and not self._may_send():
            return Code.UNAUTHORIZED
        return Code.TOPIC_NOT_FOUND if stream in self._server.deleted else self._verified(batch, count)

    def _may_send(self) -> bool:
        permissions = self._server.users[self._user or ""]
        return permissions is not None and permissions.streams[7].send_messages

    def _verified(self, batch: bytes, count: int) -> int:
        if "last messages" not in self._server.skips:
            return verify_batch(bytearray(batch), count)
        code = verify_batch(first_message(batch), 1)
        return code if code == Code.INVALID_MESSAGE_CHECKSUM else 0

    def poll(self, stream: str, topic: str, partition: int, offset: int, count: int) -> PollReply:
        left = max(0, self._server.streams[stream] - offset)
        if "old messages" in self._server.skips:
            left += 1
        return PollReply(partition, 0, min(count, left), memoryview(b""))


def probed(*skips: str | int) -> list[str]:
    server = StandInServer(*skips)
    found = probe_refusals(server.connect, SHAPE, {"durability": "memory"})
    assert not server.streams and not server.users
    return found


def test_a_server_that_makes_all_checks_has_no_fault() -> None:
    assert probed() == []


@pytest.mark.parametrize(
    "skipped, probe, words",
    [
        (Code.INVALID_MESSAGE_CHECKSUM, "checksums", "a bad checksum of message 0 was acknowledged"),
        (Code.INVALID_BATCH_CHECKSUM, "checksums", "a bad batch checksum was acknowledged"),
        ("last messages", "checksums", "a bad checksum of message 1 was acknowledged"),
        ("trace", "checksums", "was acknowledged at offset 18, due at 6"),
        (Code.UNAUTHORIZED, "permission", "a send without permission was acknowledged, due: 41"),
        ("permission", "permission", "a send without permission was acknowledged, due: 41"),
        ("logout", "logout", "a send after the logout was acknowledged, due: 256"),
        ("purge", "purge", "was acknowledged at offset 6, due at 0"),
        ("old messages", "purge", "there is one at offset 3"),
        ("delete", "delete", "a send to a deleted topic was acknowledged, due: 2010"),
    ],
)
def test_a_check_that_is_left_out_is_a_fault(skipped: str | int, probe: str, words: str) -> None:
    faults = [one for one in probed(skipped) if one.startswith(f"{probe}: ")]
    assert len(faults) == 1 and words in faults[0]


def test_a_wrong_code_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = StandInClient._verified
    monkeypatch.setattr(StandInClient, "_verified", lambda *given: Code.INVALID_FORMAT if verified(*given) else 0)
    assert probed() == ["checksums: a bad checksum of message 0 was answered 4, due: 4027"]


def test_a_good_batch_that_is_refused_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInClient, "_refusal", lambda self, stream, batch, count: Code.ERROR)
    assert len(probed()) == len(PROBES)


def test_a_connection_that_breaks_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise ConnectionResetError("reset")

    monkeypatch.setattr(StandInClient, "send", broken)
    assert probed() == [f"{name}: reset" for name in PROBES]


def test_a_row_of_a_server_that_skips_a_check_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server under the row's load; the probes see a stand-in that lies."""
    monkeypatch.setattr(case_run, "REFUSALS_LOAD_S", 0.1)
    liar = StandInServer(Code.INVALID_MESSAGE_CHECKSUM)
    monkeypatch.setattr(case_run, "probe_refusals", lambda connect, *given: probe_refusals(liar.connect, *given))
    case = Case(ServerSetup("memory"), LoadSpec(SHAPE, senders=2, partitions=2), echo=False)
    result = run_case(case, tmp_path, Pace(1, 0.2))
    assert result.faults == ["checksums: a bad checksum of message 0 was acknowledged, due: 4027"]
    assert "messages read back after kill -9" in result.verified
    row = Row("sends", case, Figure.RATE, least=0.1, against=case)
    assert judge(row, result, result).state == WRONG


# Our own server: what is withdrawn travels through the replica.


def probed_server(directory: Path, *flags: str, module: str = "shardserver") -> list[str]:
    server = ServerProcess(directory / "data", *flags, module=module)
    try:
        server.start()
        host, port = str(server.wait_ready()["tcp"]).rsplit(":", 1)
        session = Session(Peer(host, int(port), PASSWORD), "memory", [])
        found = probe_refusals(session.connect, SHAPE, session.durability_option)
        assert server.stop() == 0
        return found
    finally:
        server.kill()


@pytest.mark.parametrize("cores", [1, 2])
def test_our_server_refuses_all_that_it_must(tmp_path: Path, cores: int) -> None:
    assert probed_server(tmp_path, "--cores", str(cores)) == []


def test_our_server_with_routes_that_nothing_makes_new_is_found_out(tmp_path: Path) -> None:
    found = probed_server(tmp_path, "--cores", "1", module=STALE_ROUTES)
    assert {"permission", "purge", "delete"} <= {one.split(":")[0] for one in found}
