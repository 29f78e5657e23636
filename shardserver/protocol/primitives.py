"""Primitive encodings (framing 9, 10). Every read proves its bound: hostile bytes raise RejectedError only."""

from __future__ import annotations

import struct
from typing import TypeAlias

from shardserver.errors import Code, RejectedError

# An int is a numeric id (kind 1), a str a name (kind 2): "7" is not stream 7.
Identifier: TypeAlias = int | str

_U16, _U32, _U64, _F32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<f")


class Reader:
    """Takes values off the front of a body."""

    def __init__(self, body: memoryview | bytes) -> None:
        self._view = memoryview(body)
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._view) - self._position

    def take(self, length: int) -> memoryview:
        """The next `length` bytes. Raises RejectedError(3) when there are fewer."""
        end = self._position + length
        if end > len(self._view):
            raise RejectedError(Code.INVALID_COMMAND, f"{length} bytes wanted, {self.left} left")
        part = self._view[self._position : end]
        self._position = end
        return part

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int(_U16.unpack(self.take(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def f32(self) -> float:
        return float(_F32.unpack(self.take(4))[0])

    def flag(self) -> bool:
        """1 is true, anything else false."""
        return self.u8() == 1

    def u32s(self, count: int) -> tuple[int, ...]:
        return tuple(value for (value,) in _U32.iter_unpack(self.take(4 * count)))

    def sized(self) -> memoryview:
        """Bytes behind a u32 length."""
        return self.take(self.u32())

    def text(self, length: int) -> str:
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise RejectedError(Code.INVALID_COMMAND, "text that is not UTF-8") from error

    def name(self) -> str:
        """1..255 bytes of UTF-8 behind a length byte."""
        length = self.u8()
        if length == 0:
            raise RejectedError(Code.INVALID_COMMAND, "an empty name")
        return self.text(length)

    def str32(self) -> str:
        return self.text(self.u32())

    def identifier(self) -> Identifier:
        kind, length = self.u8(), self.u8()
        if kind == 1 and length == 4:
            return self.u32()
        if kind == 2 and length > 0:
            return self.text(length)
        raise RejectedError(Code.INVALID_IDENTIFIER, f"identifier of kind {kind}, length {length}")

    def optional_partition(self) -> int | None:
        present, partition = self.u8(), self.u32()
        return partition if present == 1 else None

    def rest(self) -> memoryview:
        return self.take(self.left)

    def finish(self) -> None:
        """For replies, which end where their last field ends. Raises RejectedError(3) when bytes are left."""
        if self.left:
            raise RejectedError(Code.INVALID_COMMAND, f"{self.left} bytes after the last field")


def u8(value: int) -> bytes:
    return value.to_bytes(1, "little")


def flag(value: bool) -> bytes:
    return b"\x01" if value else b"\x00"


def u16(value: int) -> bytes:
    return _U16.pack(value)


def u32(value: int) -> bytes:
    return _U32.pack(value)


def u32s(values: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u64(value: int) -> bytes:
    return _U64.pack(value)


def f32(value: float) -> bytes:
    return _F32.pack(value)


def name(value: str) -> bytes:
    """Raises RejectedError(3) when the name is not 1..255 bytes: the peer would refuse it."""
    raw = value.encode()
    if not 1 <= len(raw) <= 255:
        raise RejectedError(Code.INVALID_COMMAND, f"a name of {len(raw)} bytes, limits 1 and 255")
    return u8(len(raw)) + raw


def str32(value: str) -> bytes:
    return sized(value.encode())


def sized(raw: bytes) -> bytes:
    """Bytes behind a u32 length."""
    return u32(len(raw)) + raw


def identifier(value: Identifier) -> bytes:
    if isinstance(value, int):
        return b"\x01\x04" + u32(value)
    return b"\x02" + name(value)


def optional_partition(value: int | None) -> bytes:
    return bytes(5) if value is None else b"\x01" + u32(value)
