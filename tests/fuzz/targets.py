"""The targets of `make fuzz`: what each runs, its seeds, and which modules it is to cover.

Nothing of the server is imported here: a fuzzer has to look at those modules while they are loaded (run_target.py).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import layouts
from tests.fuzz.mutator import Field

VECTORS = Path(__file__).parent.parent / "vectors"
Run = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """run: `module:function` of tests.fuzz. covers: modules of shardserver whose lines are counted.

    compiled: the extensions on its way, which run with AddressSanitizer. max_bytes: the longest input.
    fields: lengths, counts and offsets in an input; nested: lengths of which each holds the next (mutator.py).
    seals: SEALED in byte 0 makes checksums good.
    words: what the fuzzer may put in as a whole. is_msgpack: values are changed in the tree (tree_mutator.py).
    """

    name: str
    run: str
    covers: tuple[str, ...]
    seeds: Callable[[], list[bytes]]
    compiled: tuple[str, ...] = ()
    max_bytes: int = 4096
    fields: tuple[Field, ...] = ()
    nested: tuple[Field, ...] = ()
    seals: bool = False
    words: Callable[[], list[bytes]] = list
    is_msgpack: bool = False

    def load(self) -> Run:
        module, function = self.run.split(":")
        loaded: Run = getattr(importlib.import_module(f"tests.fuzz.{module}"), function)
        return loaded


def _exchanges() -> list[tuple[bytes, bytes]]:
    vectors = [json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))]
    pairs = [(one["request"]["hex"], one["reply"]["hex"]) for one in vectors if "request" in one]
    return [(bytes.fromhex(request), bytes.fromhex(reply)) for request, reply in pairs]


def _frames() -> list[bytes]:
    requests = [request for request, _ in _exchanges()]
    sends = [one for one in requests if one[176] == 160]
    return [b"\0" + one for one in requests] + [b"\x11" + one for one in sends] + [b"\xff" + b"".join(sends)]


def _bodies(place: str) -> list[bytes]:
    from shardserver.protocol.table import TABLE
    from tests.protocol.bodies import REPLIES, REQUESTS

    found = REQUESTS if place == "request" else REPLIES
    return [bytes([number]) + body for number, command in enumerate(sorted(TABLE)) for body in found[command]]


def _options() -> list[bytes]:
    from shardserver.protocol.options import CATALOGUE

    entry = b"\x02\x02\x00\x00\x00%c%c\x09\x01\x00\x00\x00\x00"
    named = [b"\x02" + len(key).to_bytes(4, "little") + key.encode() + b"\x09\x01\0\0\0\x01" for key in CATALOGUE]
    return [entry % (65, 66) * 2, *named, b"".join(named)]


def _batches() -> list[bytes]:
    from tests.batches import make_batch

    made = [make_batch([b"one", b"", b"three"]), make_batch([b"x"]), make_batch([b""] * 70)]
    return [flag + bytes(one) for one in made for flag in (b"\0", b"\x01", b"\x11")]


def _files(*names: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        from tests.storage.formats import load

        return [flag + load(name)[1] for name in names for flag in (b"\0", b"\x01")]

    return seeds


def _segments() -> list[bytes]:
    from tests.storage.formats import hello

    [plain, sealed] = _files("segment")()
    return [plain, sealed, *(one + hello().ljust(4096, b"\0") for one in (plain, sealed))]


def _unpadded(name: str, length: int) -> Callable[[], list[bytes]]:
    """And once more without padding: there a changed byte is one that counts."""

    def seeds() -> list[bytes]:
        [plain, sealed] = _files(name)()
        return [plain, sealed, sealed[: 1 + length]]

    return seeds


def _ring_damage() -> list[bytes]:
    """Of heads, writes and records; and good writes with other lengths, which the target seals."""
    lengths = [(blocks << 12).to_bytes(4, "little") for blocks in (1, 3, 200)]
    plain = [bytes([file, block, 0]) + b"\xff" * 8 for file in (0, 1) for block in (0, 1, 4)]
    return plain + [bytes([file | 128, block, 12]) + one for file in (0, 1, 2) for block in (1, 2) for one in lengths]


def metadata_vector(name: str) -> bytes:
    """What the metadata log holds: `record` or `snapshot`."""
    rows = json.loads((VECTORS / "metadata" / f"{name}.json").read_text())["rows"]
    return b"".join(bytes.fromhex(row.split("|")[0]) for row in rows)


def _payloads() -> list[bytes]:
    """The vectors, and one event of each kind on what the snapshot holds."""
    from shardserver.core import metadata_events as ev

    events: list[ev.Event] = [
        ev.BootEvent(),
        ev.PasswordSet(0, "$argon2id$"),
        ev.StreamCreated(9, "new", 1),
        ev.StreamRenamed(1, "other"),
        ev.StreamDeleted(1),
        ev.TopicCreated(1, 7, "new", 1, {}, [11], [0]),
        ev.TopicUpdated(1, 2, "other", {}),
        ev.TopicDeleted(1, 2),
        ev.TopicPurged(1, 2, [12]),
        ev.PartitionsAdded(1, 2, 1, [13, 14], [0, 1]),
        ev.PartitionsMoved([ev.PartitionMove(1, 2, 0, 1, 3, 9)]),
        ev.PartitionsRemoved(1, 2, 1),
        ev.DataRemoved([1, 2]),
    ]
    changes = [ev.encode_change(ev.Change([one])) for one in events]
    return [metadata_vector("record"), metadata_vector("snapshot"), *changes]


def _payload_words() -> list[bytes]:
    """Names of fields and of kinds of events, and small arrays: in msgpack a changed letter makes another field."""
    import msgspec

    from shardserver.core import metadata_events as ev
    from shardserver.core.metadata import Partition, Topic

    events = ev.Event.__args__
    structs = (*events, ev.Change, ev.PartitionMove, Partition, Topic)
    names = {name for one in structs for name in one.__struct_fields__}
    names |= {str(one.__struct_config__.tag) for one in events}
    return [msgspec.msgpack.encode(one) for one in (*sorted(names), [], [0], [1, 2], 1 << 40, -1)]


BATCH, WIRE = "shardserver/protocol/batch.pyx", "shardserver/net/frame_reader.pyx"

_BODY_MODULES = (
    "primitives", "clients", "groups", "login", "messages", "offsets", "options", "permissions", "streams", "system",
    "tlv", "tokens", "topics", "users",
)  # fmt: skip
BODIES = tuple(f"protocol.{name}" for name in _BODY_MODULES)

TARGETS = {
    target.name: target
    for target in (
        Target(
            "frames",
            "wire_target:fuzz_frames",
            ("protocol.frame", "net.machine"),
            _frames,
            (WIRE, BATCH),
            8192,
            layouts.FRAMES,
        ),
        Target(
            "requests",
            "protocol_targets:fuzz_requests",
            (*BODIES, "protocol.addresses"),
            lambda: _bodies("request"),
            max_bytes=1024,
        ),
        Target(
            "replies",
            "protocol_targets:fuzz_replies",
            (*BODIES, "protocol.statistics"),
            lambda: _bodies("reply"),
            max_bytes=2048,
        ),
        Target("options", "protocol_targets:fuzz_options", ("protocol.options", "protocol.tlv"), _options),
        Target(
            "batches",
            "protocol_targets:fuzz_batches",
            ("protocol.batch_python", "protocol.batch_values"),
            _batches,
            compiled=(BATCH,),
            fields=layouts.BATCH,
            nested=layouts.BATCH_NESTED,
            seals=True,
        ),
        Target(
            "journal",
            "storage_targets:fuzz_journal",
            ("storage.journal_format",),
            _files("journal-file-header", "journal-write", "journal-adoption"),
            max_bytes=8193,
            fields=layouts.JOURNAL,
            nested=layouts.JOURNAL_NESTED,
            seals=True,
        ),
        Target(
            "journal-ring",
            "storage_targets:fuzz_journal_ring",
            ("storage.journal_reader", "storage.journal_format"),
            _ring_damage,
        ),
        Target(
            "segment",
            "storage_targets:fuzz_segment",
            ("storage.segment", "storage.segment_reader"),
            _segments,
            compiled=(BATCH,),
            max_bytes=12_289,
            fields=layouts.SEGMENT,
            nested=layouts.SEGMENT_NESTED,
            seals=True,
        ),
        Target(
            "index",
            "storage_targets:fuzz_index",
            ("storage.index",),
            _unpadded("index", 88),
            fields=layouts.INDEX,
            seals=True,
        ),
        Target(
            "offsets",
            "storage_targets:fuzz_offsets",
            ("storage.offsets",),
            _unpadded("offsets", 104),
            fields=layouts.OFFSETS,
            seals=True,
        ),
        Target(
            "metadata-log",
            "storage_targets:fuzz_metadata_log",
            ("storage.metadata_log",),
            _unpadded("metadata-log", 59),
            max_bytes=8193,
            fields=layouts.METADATA_LOG,
            seals=True,
        ),
        Target(
            "metadata-payloads",
            "storage_targets:fuzz_metadata_payloads",
            ("core.metadata", "core.metadata_events", "core.metadata_snapshot"),
            _payloads,
            words=_payload_words,
            is_msgpack=True,
        ),
    )
}
