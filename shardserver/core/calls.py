"""What one shard asks another: operations, and what travels inline in a slot. Layout: docs/formats/ring-messages.md.

Requests for a partition name it by its uid: whoever does not own it answers NotOwnerError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class Operation(IntEnum):
    """Numbers of the field `flags` of a request's slot. From CONTROL on the payload is msgpack."""

    SEND = 1
    POLL = 2
    STORE_OFFSET = 3
    DELETE_OFFSET = 4
    GET_OFFSET = 5
    FIND_CUT = 6
    CUT = 7
    CONTROL = 16
    INFO = 16
    CLIENTS = 17
    TOTALS = 19
    CHANGE = 20
    EVENT = 21
    JOIN = 22
    RELEASE = 23
    ADOPT = 24
    RESUME = 25
    ABANDON = 26
    LOADS = 27
    DATA_REMOVED = 28
    LOGS = 40
    GROUP = 41
    FENCE = 42


@dataclass(frozen=True, slots=True)
class SendCall:
    """payload: the batch. floor: of a repeat: one above the highest offset that the asking shard has seen answered."""

    LAYOUT: ClassVar = struct.Struct("<QIQ")
    uid: int
    count: int
    floor: int = 0

    def encode(self) -> bytes:
        return self.LAYOUT.pack(self.uid, self.count, self.floor)

    @classmethod
    def decode(cls, raw: bytes) -> SendCall:
        return cls(*cls.LAYOUT.unpack_from(raw))


@dataclass(frozen=True, slots=True)
class PollCall:
    """strategy, value: as on the wire. kind, consumer: whose committed offset counts. max_bytes: of the batches.

    member: session of the connection that polls for a group.
    """

    LAYOUT: ClassVar = struct.Struct("<QQIIIQBBB")
    uid: int
    value: int
    count: int
    consumer: int
    max_bytes: int
    kind: int
    strategy: int
    auto_commit: bool
    member: int = 0

    def encode(self) -> bytes:
        numbers = (self.uid, self.value, self.count, self.consumer, self.max_bytes, self.member)
        return self.LAYOUT.pack(*numbers, self.kind, self.strategy, self.auto_commit)

    @classmethod
    def decode(cls, raw: bytes) -> PollCall:
        uid, value, count, consumer, max_bytes, member, kind, strategy, commits = cls.LAYOUT.unpack_from(raw)
        return cls(uid, value, count, consumer, max_bytes, kind, strategy, bool(commits), member)


@dataclass(frozen=True, slots=True)
class OffsetCall:
    """Store, delete or get a committed offset. acknowledged: answer when it is durable.

    member: session of the connection that asks for its group; 0: no member. is_manager: its user manages the topic.
    """

    LAYOUT: ClassVar = struct.Struct("<QQIQBBB")
    uid: int
    kind: int
    consumer: int
    offset: int = 0
    acknowledged: bool = False
    member: int = 0
    is_manager: bool = False

    def encode(self) -> bytes:
        numbers = (self.uid, self.offset, self.consumer, self.member)
        return self.LAYOUT.pack(*numbers, self.kind, self.acknowledged, self.is_manager)

    @classmethod
    def decode(cls, raw: bytes) -> OffsetCall:
        uid, offset, consumer, member, kind, acknowledged, is_manager = cls.LAYOUT.unpack_from(raw)
        return cls(uid, kind, consumer, offset, bool(acknowledged), member, bool(is_manager))


@dataclass(frozen=True, slots=True)
class CutCall:
    """FIND_CUT, number: how many of the oldest sealed segments. CUT, number: the first offset that stays.

    Two steps, because only the second may be asked again of the owner's next process.
    """

    LAYOUT: ClassVar = struct.Struct("<QQ")
    uid: int
    number: int

    def encode(self) -> bytes:
        return self.LAYOUT.pack(self.uid, self.number)

    @classmethod
    def decode(cls, raw: bytes) -> CutCall:
        return cls(*cls.LAYOUT.unpack_from(raw))


U64 = struct.Struct("<Q")
