"""Good bodies of every command, from the vectors: seeds for tests that damage them."""

from __future__ import annotations

import json
from pathlib import Path

from shardserver.protocol.frame import RequestHeader, split_result
from shardserver.protocol.table import OP_TRUNCATE_PARTITION, TABLE, Command, Row, find_row

VECTORS = Path(__file__).parent.parent / "vectors"


def _pairs() -> list[tuple[bytes, bytes]]:
    vectors = [json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))]
    pairs = [(one["request"], one["reply"]) for one in vectors if "request" in one]
    return [(bytes.fromhex(request["hex"]), bytes.fromhex(reply["hex"])) for request, reply in pairs]


def _payload(reply: bytes, row: Row) -> bytes:
    framed = row.has_result_section or reply[208] == OP_TRUNCATE_PARTITION
    return bytes(split_result(memoryview(reply)[256:])[1]) if framed and len(reply) > 256 else reply[256:]


def _collect() -> tuple[dict[Command, set[bytes]], dict[Command, set[bytes]]]:
    requests: dict[Command, set[bytes]] = {command: set() for command in TABLE}
    replies: dict[Command, set[bytes]] = {command: set() for command in TABLE}
    for request, reply in _pairs():
        header = RequestHeader.decode(request)
        row = find_row(header.operation, header.code)
        if row is not None:
            requests[row.command].add(request[256:])
            replies[row.command].add(_payload(reply, row))
    for bodies in (requests, replies):
        bodies[Command.LOGIN_WITH_TOKEN] = bodies[Command.LOGIN]
    return requests, replies


_requests, _replies = _collect()
REQUESTS = {command: sorted(bodies) for command, bodies in _requests.items()}
# Without empty payloads: those say "missing", or belong to an error.
REPLIES = {command: sorted(bodies - {b""}) for command, bodies in _replies.items()}
