"""What every codec of a body offers. Decoders check bounds and shape; whether objects exist is not theirs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self


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
    """Nothing to say: ping, most reads of lists, most replies of changes."""

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        return cls()

    def encode(self) -> bytes:
        return b""
