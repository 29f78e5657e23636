"""The storage formats as pairs of functions between bytes and the values of a vector (tests/vectors/storage)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from shardserver.core.partition_label import PartitionLabel, encode_label
from shardserver.errors import CorruptionError
from shardserver.protocol.batch import check_stored_batch, stamp_batch
from shardserver.storage import identity_file, index, metadata_log, offsets, segment
from shardserver.storage import journal_format as fmt
from tests.batches import make_batch, payloads_of

VECTORS = Path(__file__).parent.parent / "vectors" / "storage"
DOCS = Path(__file__).parent.parent.parent / "docs" / "formats"
Values = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """decode: the values, or None when raw is not whole and good. checked: bytes whose change must be seen."""

    decode: Callable[[memoryview], Values | None]
    encode: Callable[[Values], bytes]
    checked: tuple[range, ...]


def load(name: str) -> tuple[Values, bytes]:
    """A vector's values and bytes. Its rows are hex digits and their meaning; `00 x 9` is nine zeros."""
    vector = json.loads((VECTORS / f"{name}.json").read_text())
    raw = b""
    for row in vector["rows"]:
        digits = row.split("|")[0]
        raw += bytes(int(digits.split("x")[1])) if "x" in digits else bytes.fromhex(digits)
    return vector["values"], raw.ljust(vector["length"], b"\0")


def hello() -> bytes:
    """The batch of the vectors, by the stamp that the server gives."""
    batch = make_batch([b"hello"])
    stamp_batch(batch, 1, 9, 1_700_000_000_000_001)
    return bytes(batch)


def _decode_file_header(raw: memoryview) -> Values | None:
    header = fmt.decode_file_header(raw)
    return None if header is None else asdict(header)


def _decode_write(raw: memoryview) -> Values | None:
    header = fmt.decode_write(raw)
    if header is None:
        return None
    records = []
    for record in fmt.decode_records(raw, header, "journal"):
        values = {name: getattr(record, name) for name in ("kind", "flags", "shard", "uid", "term")}
        if record.kind in (fmt.KIND_HINT, fmt.KIND_ADOPTION):
            hint = fmt.Hint.decode(record.payload)
            place = [hint.segment_base, hint.position, hint.next_offset]
            values["hint"] = [*place, hint.last_timestamp, hint.answered_offset]
        elif record.kind == fmt.KIND_OFFSET:
            values["offset"] = list(fmt.decode_offset(record.payload))
        elif record.kind == fmt.KIND_BATCH:
            good = check_stored_batch(record.payload, len(record.payload))
            values["batch"] = payloads_of(bytes(record.payload))[0].decode("latin-1") if good else "damaged"
        records.append(values)
    return {"header": asdict(header), "records": records}


def _encode_write(values: Values) -> bytes:
    buffer = bytearray(values["header"]["length"])
    position = fmt.WRITE_HEADER_BYTES
    for record in values["records"]:
        if "hint" in record:
            payload = fmt.Hint(*record["hint"]).encode()
        else:
            payload = fmt.encode_offset(*record["offset"]) if "offset" in record else hello()
        head = [record[name] for name in ("kind", "flags", "shard", "uid", "term")]
        raw = fmt.encode_record_header(*head, len(payload)) + payload
        buffer[position : position + len(raw)] = raw
        position += len(raw)
    fmt.seal_write(memoryview(buffer), fmt.WriteHeader(**values["header"]))
    return bytes(buffer)


def _decode_segment(raw: memoryview) -> Values | None:
    header = segment.decode_header(raw)
    batches = list(segment.walk_batches(raw[4096:], 4096, header[1])) if header else []
    if header is None or len(batches) != 1:
        return None
    one = batches[0]
    batch = {"position": one.position, "base_offset": one.base_offset, "message_count": one.message_count}
    batch |= {"timestamp": one.timestamp, "payload": payloads_of(bytes(one.data))[0].decode("latin-1")}
    return header._asdict() | {"batch": batch}


def _encode_segment(values: Values) -> bytes:
    names = ("uid", "base_offset", "last_timestamp", "follows_hole")
    header = segment.encode_header(segment.SegmentHeader(*(values[name] for name in names)))
    return header + hello().ljust(4096, b"\0")


def _decode_index(raw: memoryview) -> Values | None:
    found = index.decode_index(raw, 1, 0)
    return None if found is None else {"uid": 1, "base_offset": 0} | asdict(found)


def _encode_index(values: Values) -> bytes:
    entries = index.SparseIndex(values["offsets"], values["positions"], values["timestamps"])
    return index.encode_index(entries, values["uid"], values["base_offset"]).ljust(4096, b"\0")


def _decode_offsets(raw: memoryview) -> Values | None:
    try:
        entries, journal_id, covered = offsets.decode_snapshot(raw, "offsets")
    except CorruptionError:
        return None
    rows = [[uid, term, kind, consumer, offset] for (uid, kind, consumer), (term, offset) in entries.items()]
    return {"journal_id": journal_id, "covered": covered, "entries": rows}


def _encode_offsets(values: Values) -> bytes:
    found = {(uid, kind, consumer): offset for uid, _, kind, consumer, offset in values["entries"]}
    terms = {entry[0]: entry[1] for entry in values["entries"]}
    return offsets.encode_snapshot(found, terms, values["journal_id"], values["covered"]).ljust(4096, b"\0")


def _decode_metadata(raw: memoryview) -> Values | None:
    entries = []
    for position in range(0, len(raw), 4096):
        entry = metadata_log._decode(raw[position:])
        if entry is None:
            return None
        kind, revision, generation, payload = entry
        numbers = {"position": position, "kind": kind, "revision": revision, "generation": generation}
        entries.append(numbers | {"payload": payload.hex()})
    return {"entries": entries} if len(entries) == 2 else None  # as many as the vector has


def _encode_metadata(values: Values) -> bytes:
    return b"".join(
        metadata_log._encode(one["kind"], one["revision"], one["generation"], bytes.fromhex(one["payload"]))
        for one in values["entries"]
    )


def _decode_identity(raw: memoryview) -> Values | None:
    payload = identity_file.decode_identity(raw, 2)
    return None if payload is None else {"uid": 2, "payload": msgspec.msgpack.decode(payload)}


def _encode_identity(values: Values) -> bytes:
    label = msgspec.convert(values["payload"], PartitionLabel)
    return identity_file.encode_identity(values["uid"], encode_label(label)).ljust(4096, b"\0")


FORMATS = {
    "identity": Format(_decode_identity, _encode_identity, (range(152),)),
    "journal-file-header": Format(
        _decode_file_header, lambda values: fmt.encode_file_header(fmt.FileHeader(**values)), (range(40),)
    ),
    "journal-write": Format(_decode_write, _encode_write, (range(4096),)),
    "journal-adoption": Format(_decode_write, _encode_write, (range(4096),)),
    "segment": Format(_decode_segment, _encode_segment, (range(48), range(4096, 4405))),
    "segment-after-hole": Format(_decode_segment, _encode_segment, (range(48), range(4096, 4405))),
    "index": Format(_decode_index, _encode_index, (range(88),)),
    "offsets": Format(_decode_offsets, _encode_offsets, (range(104),)),
    "metadata-log": Format(_decode_metadata, _encode_metadata, (range(40), range(4096, 4150))),
}
