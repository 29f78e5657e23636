"""What a shard answers another: bytes and buffers, or one of our errors. Layout: docs/formats/ring-messages.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from shardserver.errors import (
    BackpressureError,
    Code,
    CorruptionError,
    DiskFullError,
    NotCommittedError,
    NotOwnerError,
    RejectedError,
    ShardServerError,
    StorageError,
)
from shardserver.router.ring_python import INLINE_BYTES

Buffer = Any  # what exports contiguous bytes: bytes, bytearray, memoryview, Block
_ERROR = struct.Struct("<HH")  # tag, code
# The first that fits: subclasses before their bases.
_TAGS: tuple[tuple[int, type[ShardServerError]], ...] = (
    (1, RejectedError),
    (2, DiskFullError),
    (3, CorruptionError),
    (4, StorageError),
    (5, NotOwnerError),
    (8, NotCommittedError),
    (6, BackpressureError),
    (7, ShardServerError),
)
_KINDS = dict(_TAGS)
_CODES = frozenset(map(int, Code))


@dataclass(frozen=True, slots=True)
class Answer:
    """inline: up to 40 bytes travel in the slot. loan: keeps a peer's buffers; they are ours while it lives."""

    inline: bytes = b""
    buffers: list[Buffer] = field(default_factory=list)
    loan: object = None

    def parts(self) -> list[Buffer]:
        """All bytes in order."""
        return [self.inline, *self.buffers] if self.inline else self.buffers

    def joined(self) -> bytes:
        """A copy of all bytes: for control requests."""
        return b"".join(self.parts())


def encode_error(error: ShardServerError) -> bytes:
    """Tag, code and as much of the sentence as a slot holds."""
    tag = next((tag for tag, kind in _TAGS if isinstance(error, kind)), 7)
    code = int(error.code) if isinstance(error, RejectedError) else 0
    text = str(error).encode(errors="replace")[: INLINE_BYTES - _ERROR.size]
    return _ERROR.pack(tag, code) + text


def decode_error(raw: bytes) -> ShardServerError:
    """Of the class that the tag names; what has no tag of its own has that of its nearest base.

    Raises CorruptionError: no error of ours was written so.
    """
    if len(raw) < _ERROR.size:
        raise CorruptionError("ring", 0, f"an error of {_ERROR.size} bytes or more, found {len(raw)}")
    tag, code = _ERROR.unpack_from(raw)
    text = raw[_ERROR.size :].decode(errors="replace")
    kind = _KINDS.get(tag)
    if kind is None or (tag == 1 and code not in _CODES):
        raise CorruptionError("ring", 0, f"an error of a known tag and code, found {tag} and {code}")
    if tag == 1:
        return RejectedError(Code(code), text)
    if tag == 3:
        return CorruptionError(text, 0, "undamaged bytes on the owning shard")
    return kind(text)
