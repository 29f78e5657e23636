"""Users (commands 4): requests, and how users are told in replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from shardserver.errors import Code, RejectedError
from shardserver.protocol import options as topic_options
from shardserver.protocol import primitives as wire
from shardserver.protocol.options import Options
from shardserver.protocol.permissions import Permissions, encode_optional_permissions, read_optional_permissions
from shardserver.protocol.primitives import Identifier, Reader

STATUS_ACTIVE, STATUS_INACTIVE = 1, 2
USERNAME_BYTES = range(3, 51)
PASSWORD_BYTES = range(3, 101)


def _read_username(reader: Reader) -> str:
    """Raises RejectedError 3 or 43."""
    name = reader.name()
    if len(name.encode()) not in USERNAME_BYTES:
        raise RejectedError(Code.INVALID_USERNAME, f"a user name of {len(name.encode())} bytes")
    return name


def _read_password(reader: Reader) -> str:
    """Raises RejectedError 3 or 44."""
    password = reader.name()
    if len(password.encode()) not in PASSWORD_BYTES:
        raise RejectedError(Code.INVALID_PASSWORD, f"a password of {len(password.encode())} bytes")
    return password


def _read_status(reader: Reader) -> int:
    """Raises RejectedError 3 or 45."""
    status = reader.u8()
    if status not in (STATUS_ACTIVE, STATUS_INACTIVE):
        raise RejectedError(Code.INVALID_USER_STATUS, f"status {status}")
    return status


@dataclass(frozen=True, slots=True)
class CreateUserRequest:
    """status: 1 active, 2 inactive. permissions: None gives none. No option key is known for users."""

    username: str
    password: str = field(repr=False)
    status: int
    permissions: Permissions | None
    options: Options

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises RejectedError 3, 43, 44, 45, and those of options."""
        reader = Reader(body)
        username, password, status = _read_username(reader), _read_password(reader), _read_status(reader)
        permissions = read_optional_permissions(reader)
        return cls(username, password, status, permissions, topic_options.decode_options(reader.rest()))

    def encode(self) -> bytes:
        head = wire.name(self.username) + wire.name(self.password) + wire.u8(self.status)
        return head + encode_optional_permissions(self.permissions) + topic_options.encode_options(self.options)


@dataclass(frozen=True, slots=True)
class UpdateUserRequest:
    """None leaves a field as it is."""

    user: Identifier
    username: str | None
    status: int | None
    options: Options

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises RejectedError 3, 6, 43, 45, and those of options."""
        reader = Reader(body)
        user = reader.identifier()
        username = _read_username(reader) if reader.flag() else None
        status = _read_status(reader) if reader.flag() else None
        return cls(user, username, status, topic_options.decode_options(reader.rest()))

    def encode(self) -> bytes:
        username = b"\x00" if self.username is None else b"\x01" + wire.name(self.username)
        status = b"\x00" if self.status is None else b"\x01" + wire.u8(self.status)
        return wire.identifier(self.user) + username + status + topic_options.encode_options(self.options)


@dataclass(frozen=True, slots=True)
class UpdatePermissionsRequest:
    """permissions None removes all."""

    user: Identifier
    permissions: Permissions | None

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.identifier(), read_optional_permissions(reader))

    def encode(self) -> bytes:
        return wire.identifier(self.user) + encode_optional_permissions(self.permissions)


@dataclass(frozen=True, slots=True)
class ChangePasswordRequest:
    """current: empty from who resets it for another user."""

    user: Identifier
    current: str = field(repr=False)
    new: str = field(repr=False)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises RejectedError 3, 6, and 44 for the new one: a wrong current one is told after the look-up."""
        reader = Reader(body)
        return cls(reader.identifier(), reader.text(reader.u8()), _read_password(reader))

    def encode(self) -> bytes:
        current = self.current.encode()
        return wire.identifier(self.user) + wire.u8(len(current)) + current + wire.name(self.new)


@dataclass(frozen=True, slots=True)
class UserHeader:
    """A user without permissions. created_at: microseconds since the epoch."""

    id: int
    created_at: int
    status: int
    username: str
    options: Options

    @classmethod
    def read(cls, reader: Reader) -> Self:
        head = (reader.u32(), reader.u64(), reader.u8())
        return cls(*head, reader.name(), topic_options.decode_options(reader.sized()))

    def encode(self) -> bytes:
        head = wire.u32(self.id) + wire.u64(self.created_at) + wire.u8(self.status)
        return head + wire.name(self.username) + wire.sized(topic_options.encode_options(self.options))


@dataclass(frozen=True, slots=True)
class UserDetails:
    """Reply of get_user and create_user."""

    header: UserHeader
    permissions: Permissions | None

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        header = UserHeader.read(reader)
        permissions = read_optional_permissions(reader)
        if permissions is None:
            reader.take(3)
        reader.finish()
        return cls(header, permissions)

    def encode(self) -> bytes:
        # Without permissions four zero bytes follow, not one (commands 4.1).
        tail = bytes(3) if self.permissions is None else b""
        return self.header.encode() + encode_optional_permissions(self.permissions) + tail


@dataclass(frozen=True, slots=True)
class UserList:
    """Reply of get_users."""

    users: tuple[UserHeader, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader, users = Reader(body), list[UserHeader]()
        while reader.left:
            users.append(UserHeader.read(reader))
        return cls(tuple(users))

    def encode(self) -> bytes:
        return b"".join(one.encode() for one in self.users)
