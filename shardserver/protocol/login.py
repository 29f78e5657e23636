"""Login (commands 3): one request with two forms, and its reply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from shardserver.errors import Code, RejectedError
from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Reader

# 0.11.0, packed major << 20 | minor << 10 | patch (README 1).
PROTOCOL_VERSION = 11 << 10


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """username is None for the token form; then password holds the token. context is the client's own text."""

    protocol_version: int
    sdk_name: str
    sdk_version: str
    username: str | None
    password: str = field(repr=False)
    context: bytes = b""

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """The password form if it ends exactly at the end of the body, else the token form. Raises RejectedError."""
        for has_name in (True, False):
            reader = Reader(body)
            version, sdk_name, sdk_version = reader.u32(), reader.name(), reader.name()
            try:
                username = reader.name() if has_name else None
                password = reader.name()
                context = reader.sized()
            except RejectedError:
                continue
            if reader.left == 0:
                return cls(version, sdk_name, sdk_version, username, password, bytes(context))
        raise RejectedError(Code.INVALID_FORMAT, "neither form of a login")

    def encode(self) -> bytes:
        client = wire.u32(self.protocol_version) + wire.name(self.sdk_name) + wire.name(self.sdk_version)
        username = b"" if self.username is None else wire.name(self.username)
        return client + username + wire.name(self.password) + wire.sized(self.context)


@dataclass(frozen=True, slots=True)
class LoginReply:
    user_id: int
    session: int
    protocol_version: int
    server_version: str

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        reply = cls(reader.u32(), reader.u64(), reader.u32(), reader.name())
        reader.finish()
        return reply

    def encode(self) -> bytes:
        head = wire.u32(self.user_id) + wire.u64(self.session) + wire.u32(self.protocol_version)
        return head + wire.name(self.server_version)
