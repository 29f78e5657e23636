"""What a snapshot of the metadata holds: the replica and the replies kept. Format: docs/formats/metadata-log.md."""

from __future__ import annotations

import msgspec

from shardserver.core.metadata import Metadata
from shardserver.core.msgpack import decode_value
from shardserver.core.replies import KeptReply


class Snapshot(msgspec.Struct, frozen=True):
    """replies: as RepliesKept gives and takes them."""

    metadata: Metadata
    replies: list[KeptReply]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    return _encoder.encode(snapshot)


def decode_snapshot(raw: bytes) -> Snapshot:
    """Raises msgspec.DecodeError."""
    return decode_value(_decoder, raw)
