"""Personal access tokens (commands 4.3). Login with one: login.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Reader

# Both mean that a token never expires.
NEVER_EXPIRES = (0, (1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class CreateTokenRequest:
    """expiry: a duration in microseconds; 0 and 2^64-1 mean never. Names are 1..255 bytes here."""

    name: str
    expiry: int

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        return cls(reader.name(), reader.u64())

    def encode(self) -> bytes:
        return wire.name(self.name) + wire.u64(self.expiry)


@dataclass(frozen=True, slots=True)
class DeleteTokenRequest:
    name: str

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls(Reader(body).name())

    def encode(self) -> bytes:
        return wire.name(self.name)


@dataclass(frozen=True, slots=True)
class RawToken:
    """Reply of create_personal_access_token: the only time that the token itself is told."""

    token: str = field(repr=False)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader = Reader(body)
        raw = cls(reader.name())
        reader.finish()
        return raw

    def encode(self) -> bytes:
        return wire.name(self.token)


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """expires_at: microseconds since the epoch, 0 for never."""

    name: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class TokenList:
    """Reply of get_personal_access_tokens."""

    tokens: tuple[TokenInfo, ...]

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        reader, tokens = Reader(body), list[TokenInfo]()
        while reader.left:
            tokens.append(TokenInfo(reader.name(), reader.u64()))
        return cls(tuple(tokens))

    def encode(self) -> bytes:
        return b"".join(wire.name(one.name) + wire.u64(one.expires_at) for one in self.tokens)
