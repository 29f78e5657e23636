"""Consumer groups (commands 7): requests, groups with their members, assignments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Identifier, Reader


@dataclass(frozen=True, slots=True)
class CreateGroupRequest:
    stream: Identifier
    topic: Identifier
    name: str

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), reader.identifier(), reader.name())

    def encode(self) -> bytes:
        return wire.identifier(self.stream) + wire.identifier(self.topic) + wire.name(self.name)


@dataclass(frozen=True, slots=True)
class GroupHeader:
    """A group without its members. partitions_count: of its topic."""

    id: int
    partitions_count: int
    members_count: int
    name: str

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.u32(), reader.u32(), reader.u32(), reader.name())

    def encode(self) -> bytes:
        counts = wire.u32(self.partitions_count) + wire.u32(self.members_count)
        return wire.u32(self.id) + counts + wire.name(self.name)


@dataclass(frozen=True, slots=True)
class GroupMember:
    id: int
    partitions: tuple[int, ...]

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.u32(), reader.u32s(reader.u32()))

    def encode(self) -> bytes:
        return wire.u32(self.id) + wire.u32(len(self.partitions)) + wire.u32s(self.partitions)


@dataclass(frozen=True, slots=True)
class GroupDetails:
    """Reply of get_consumer_group and create_consumer_group. There are header.members_count members."""

    header: GroupHeader
    members: tuple[GroupMember, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        header = GroupHeader.read(reader)
        members = tuple(GroupMember.read(reader) for _ in range(header.members_count))
        reader.finish()
        return cls(header, members)

    def encode(self) -> bytes:
        return self.header.encode() + b"".join(one.encode() for one in self.members)


@dataclass(frozen=True, slots=True)
class GroupList:
    """Reply of get_consumer_groups."""

    groups: tuple[GroupHeader, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader, groups = Reader(body), list[GroupHeader]()
        while reader.left:
            groups.append(GroupHeader.read(reader))
        return cls(tuple(groups))

    def encode(self) -> bytes:
        return b"".join(one.encode() for one in self.groups)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Reply of sync_consumer_group: the partitions that the calling member may poll now.

    generation is compared for equality only. The caller who is no member gets an empty body instead.
    """

    generation: int
    partitions: tuple[int, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        assignment = cls(reader.u64(), reader.u32s(reader.u32()))
        reader.finish()
        return assignment

    def encode(self) -> bytes:
        return wire.u64(self.generation) + wire.u32(len(self.partitions)) + wire.u32s(self.partitions)
