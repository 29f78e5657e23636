"""Names that look like paths, through a real server: only ids form paths, and a name reaches nothing but its object."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardserver.client.connection import RequestRefusedError
from shardserver.errors import Code
from shardserver.protocol.addresses import CONSUMER_SINGLE, PartitionAddress
from shardserver.protocol.messages import NEXT, PollRequest
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection, batches_of

CORES = 2
NAMES = [
    ".",
    "..",
    "../../../../../../tmp/shardserver-was-here",
    "/tmp/shardserver-was-here",
    "./a/../../b",
    "with\0nul",
    "..\\..\\windows",
    "%2e%2e%2f",
    "\uff0e\uff0e\uff0fetc",  # full-width dots and slash
    "\u2024\u2024\u2215etc",  # one dot leader, division slash
    "e\u0301",  # e and an accent, which is not:
    "\u00e9",
    "\u202egol.txt",
    "$(touch shardserver-was-here)",
    "; rm -rf data",
    "-rf",
    "~root",
    "line\nbreak",
    "metadata",
    "run",
    "x" * 255,
    "\U0001f4a9" * 63,
]
# What a data directory holds: words of ours, numbers, and suffixes. A partition's directory is its uid.
OURS = re.compile(
    r"[a-z][a-z_-]*(\.[a-z]+)*|shard-?\d+|\d+|\d+\.(log|index|journal)|[a-z_-]+[.-]\d+|[a-z_-]+\.(json|toml|sock)"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=CORES)
    try:
        yield made.serve()
    finally:
        made.kill()


def paths(directory: Path) -> set[str]:
    return {str(one.relative_to(directory)) for one in directory.rglob("*")}


def use_everywhere(one: WireConnection, name: str) -> None:
    """As stream, topic and payload."""
    one.create_stream(name)
    one.create_topic(name, name, 1)
    assert one.send_payloads(name, 0, b"in " + name.encode(), stream=name) == 0


def read_by_name(one: WireConnection, name: str) -> list[bytes]:
    """By a consumer of that name, whose offset is committed."""
    address = PartitionAddress(CONSUMER_SINGLE, name, name, name, 0)
    reply = one.ask(Command.POLL_MESSAGES, PollRequest(address, NEXT, 0, 10, True))
    return [payload for _, payloads in batches_of(reply.batches) for payload in payloads]


def test_no_name_becomes_a_part_of_a_path(server: ShardedServer, tmp_path: Path) -> None:
    outside = {path for path in paths(tmp_path) if not path.startswith("data/")}
    with server.connect() as one:
        for name in NAMES:
            use_everywhere(one, name)
        for name in NAMES:  # each by itself: no two of them are one, and none is another path's data
            assert read_by_name(one, name) == [b"in " + name.encode()]
    assert {path for path in paths(tmp_path) if not path.startswith("data/")} == outside
    strange = {part for path in paths(server.data) for part in path.split("/") if not OURS.fullmatch(part)}
    assert not strange
    assert not Path("/tmp/shardserver-was-here").exists() and not Path("shardserver-was-here").exists()
    assert server.stop() == 0
    server.serve()
    with server.connect() as one:
        for name in NAMES:
            assert one.read_all(name, 0, stream=name) == [b"in " + name.encode()]


def test_what_looks_like_a_name_reaches_nothing(server: ShardedServer) -> None:
    guesses: list[str | int] = [
        "mine/../other",
        "other\0",
        "\u043ether",
        "OTHER",
        "./other",
        " other",
        "other/",
        7,
        2**32 - 1,
    ]
    with server.connect() as one:
        one.create_stream("other")
        one.create_topic("other", "t", 1)
        one.send_payloads("t", 0, b"of other", stream="other")
        for guess in guesses:
            for stream, topic in ((guess, "t"), ("other", guess)):
                with pytest.raises(RequestRefusedError) as refused:
                    one.poll(stream, topic, 0, 0, 10)
                assert refused.value.code in (Code.STREAM_NOT_FOUND, Code.TOPIC_NOT_FOUND)
