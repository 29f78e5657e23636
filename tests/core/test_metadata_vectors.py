"""Golden vectors of what the metadata log holds, written from docs/formats/metadata-log.md, "Payloads"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardserver.core import metadata_events as ev
from shardserver.core.metadata_snapshot import Snapshot, decode_snapshot, encode_snapshot

VECTORS = Path(__file__).parent.parent / "vectors" / "metadata"


def load(name: str) -> tuple[dict[str, Any], bytes]:
    vector = json.loads((VECTORS / f"{name}.json").read_text())
    return vector["values"], b"".join(bytes.fromhex(row.split("|")[0]) for row in vector["rows"])


def told(value: object) -> Any:
    """As the vectors tell it: bytes as hex digits, keys as text."""
    return json.loads(msgspec.json.encode(hexed(msgspec.to_builtins(value, builtin_types=(bytes,)))))


def hexed(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: hexed(one) for key, one in value.items()}
        case list() | tuple():
            return [hexed(one) for one in value]
    return value


def read_record(values: dict[str, Any]) -> ev.Change:
    names = ("client", "request_checksum", "reply")
    raw = {name: bytes.fromhex(values[name]) for name in names}
    return msgspec.convert(values | raw, ev.Change)


def read_snapshot(values: dict[str, Any]) -> Snapshot:
    rows = [
        [bytes.fromhex(client), request, bytes.fromhex(checksum), bytes.fromhex(reply)]
        for client, request, checksum, reply in values["replies"]
    ]
    metadata = values["metadata"] | {
        "users": {id: with_bytes(user) for id, user in values["metadata"]["users"].items()}
    }
    return msgspec.convert({"metadata": metadata, "replies": rows}, Snapshot, strict=False)  # JSON's keys are text


def with_bytes(user: dict[str, Any]) -> dict[str, Any]:
    tokens = {name: one | {"hash": bytes.fromhex(one["hash"])} for name, one in user["tokens"].items()}
    return user | {"spared": bytes.fromhex(user["spared"]), "tokens": tokens}


def test_the_records_bytes_decode_to_its_values_and_its_values_encode_to_its_bytes() -> None:
    values, raw = load("record")
    assert told(ev.decode_change(raw)) == values
    assert ev.encode_change(read_record(values)) == raw


def test_the_snapshots_bytes_decode_to_its_values_and_its_values_encode_to_its_bytes() -> None:
    values, raw = load("snapshot")
    assert told(decode_snapshot(raw)) == values
    assert encode_snapshot(read_snapshot(values)) == raw


def test_what_is_derived_is_there_after_decoding() -> None:
    metadata = decode_snapshot(load("snapshot")[1]).metadata
    stream, topic = metadata.find_topic("orders", "events")
    assert (stream.id, topic.id) == (1, 2)
    assert metadata.shard_counts == {5: 1} and metadata.partitions_count == 1


@pytest.mark.parametrize("name, decode", [("record", ev.decode_change), ("snapshot", decode_snapshot)])
def test_a_payload_cut_short_is_refused_at_every_length(name: str, decode: Any) -> None:
    _, raw = load(name)
    for length in range(len(raw)):
        with pytest.raises(msgspec.DecodeError):
            decode(raw[:length])
