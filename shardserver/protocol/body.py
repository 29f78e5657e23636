"""What every codec of a body offers. Decoders check bounds and shape; whether objects exist is not theirs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from shardserver.errors import Code, RejectedError


class Body(Protocol):
    """The body of a request or the payload of a reply.

    Requests ignore bytes after their last field (framing 9); replies refuse them.
    """

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """The values in body. Raises RejectedError with the code to answer."""
        ...

    def encode(self) -> bytes:
        """The bytes of these values. Raises RejectedError for a name that does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class Empty:
    """The request of a command that needs no more than its code."""

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls()

    def encode(self) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class Done:
    """The reply of a command that has nothing to tell but that it was done."""

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Raises RejectedError(3) when there are bytes."""
        if len(body):
            raise RejectedError(Code.INVALID_COMMAND, f"{len(body)} bytes in a reply without payload")
        return cls()

    def encode(self) -> bytes:
        return b""
