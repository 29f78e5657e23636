"""Bodies of every command, and batches, in any shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardserver.errors import RejectedError
from shardserver.protocol import batch, batch_python
from shardserver.protocol.batch_values import decode_batches
from shardserver.protocol.body import Body
from shardserver.protocol.options import decode_options, parse_topic_options
from shardserver.protocol.table import TABLE
from tests.fuzz.seals import SEALED, seal_batch

COMMANDS = sorted(TABLE)


def _decoded(codec: type[Body], body: bytes) -> Body | None:
    try:
        return codec.decode(memoryview(body))
    except RejectedError:
        return None


def _round_trip(codec: type[Body], body: bytes) -> None:
    """What decodes encodes to bytes that decode to the same: a value that was read past the body would not."""
    value = _decoded(codec, body)
    if value is not None:
        raw = value.encode()
        again = _decoded(codec, raw)
        assert again is not None and again.encode() == raw


def fuzz_requests(data: bytes) -> None:
    """The first byte chooses the command; its body follows."""
    if data:
        _round_trip(TABLE[COMMANDS[data[0] % len(COMMANDS)]].request, data[1:])


def fuzz_replies(data: bytes) -> None:
    """The same, of what our client reads."""
    if data:
        _round_trip(TABLE[COMMANDS[data[0] % len(COMMANDS)]].reply, data[1:])


def fuzz_options(data: bytes) -> None:
    try:
        parse_topic_options(decode_options(memoryview(data)))
    except RejectedError:
        return


def _outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """ValueError is what both say to a batch that is none."""
    try:
        return function(*arguments)
    except ValueError:
        return ValueError


def fuzz_batches(data: bytes) -> None:
    """The compiled walk and its twin give the same, and what the values' codec takes, both take."""
    raw = bytearray(data[1:])
    if data and data[0] & SEALED:
        seal_batch(raw)
    count = int.from_bytes(raw[48:52], "little")
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("verify_batch", (raw, count)),
        ("check_stored_batch", (raw, len(raw))),
        ("damaged_batch_extent", (raw,)),
        ("slice_batch", (raw, data[0] >> 4 if data else 0, 2)),
    ]
    for name, arguments in calls:
        compiled, told = (_outcome(getattr(module, name), *arguments) for module in (batch, batch_python))
        assert compiled == told, f"{name}: {compiled} and {told}"
    _decode_values(bytes(raw), count)


def _decode_values(raw: bytes, count: int) -> None:
    try:
        batches = decode_batches(raw)
    except RejectedError:
        return
    assert b"".join(one.encode() for one in batches) == raw
    # Deltas are for who takes a batch to look at, not for who reads one that a server gave.
    deltas = [one.offset_delta for found in batches for one in found.messages]
    if len(batches) == 1 and deltas == list(range(len(deltas))):
        assert batch.verify_batch(raw, count) == (0 if count else 3)
