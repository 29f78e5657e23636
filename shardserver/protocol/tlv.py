"""Typed values and the key-value entries of user headers (framing 10). Options: options.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self, TypeAlias

from shardserver.errors import Code, RejectedError
from shardserver.protocol import primitives as wire
from shardserver.protocol.primitives import Reader

KIND_RAW, KIND_STRING, KIND_BOOL, KIND_I128, KIND_U32, KIND_U64, KIND_U128 = 1, 2, 3, 8, 11, 12, 13
MAX_VALUE_BYTES = 255
MAX_USER_HEADERS_BYTES = 100_000
TypedContent: TypeAlias = bytes | str | bool | int | float

_NUMBERS = {4: "<b", 5: "<h", 6: "<i", 7: "<q", 9: "<B", 10: "<H", 11: "<I", 12: "<Q", 14: "<f", 15: "<d"}
_STRUCTS = {kind: struct.Struct(layout) for kind, layout in _NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class Typed:
    """A value and its kind byte. The kind says which type value has: two kinds may hold equal values."""

    kind: int
    value: TypedContent

    @classmethod
    def decode(cls, kind: int, raw: bytes) -> Self:
        """Raises ValueError for an unknown kind, a size that is not the kind's, or text that is not UTF-8."""
        if not 1 <= len(raw) <= MAX_VALUE_BYTES:
            raise ValueError(f"a value of {len(raw)} bytes")
        if kind == KIND_RAW:
            return cls(kind, raw)
        if kind == KIND_STRING:
            return cls(kind, raw.decode())
        if kind == KIND_BOOL and raw in (b"\x00", b"\x01"):
            return cls(kind, raw == b"\x01")
        if kind in (KIND_I128, KIND_U128) and len(raw) == 16:
            return cls(kind, int.from_bytes(raw, "little", signed=kind == KIND_I128))
        layout = _STRUCTS.get(kind)
        if layout is None or layout.size != len(raw):
            raise ValueError(f"kind {kind} with {len(raw)} bytes")
        return cls(kind, layout.unpack(raw)[0])

    def encode(self) -> bytes:
        """The value's bytes alone, without kind and length."""
        value = self.value
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, bool):
            return wire.flag(value)
        if self.kind in (KIND_I128, KIND_U128) and isinstance(value, int):
            return value.to_bytes(16, "little", signed=self.kind == KIND_I128)
        return _STRUCTS[self.kind].pack(value)


def read_typed(reader: Reader, refusal: Code) -> Typed:
    """Kind u8, length u32, value. Raises RejectedError(refusal), or 3 when the bytes end too early."""
    kind, length = reader.u8(), reader.u32()
    if not 1 <= length <= MAX_VALUE_BYTES:
        raise RejectedError(refusal, f"a value of {length} bytes")
    try:
        return Typed.decode(kind, bytes(reader.take(length)))
    except ValueError as error:
        raise RejectedError(refusal, str(error)) from error


def encode_typed(typed: Typed) -> bytes:
    return wire.u8(typed.kind) + wire.sized(typed.encode())


UserHeaders: TypeAlias = tuple[tuple[Typed, Typed], ...]


def decode_user_headers(raw: memoryview) -> UserHeaders:
    """Key and value of each header, in order. Raises RejectedError 3, 4017, 4018, 4019."""
    if len(raw) > MAX_USER_HEADERS_BYTES:
        raise RejectedError(Code.TOO_BIG_USER_HEADERS, f"{len(raw)} bytes")
    reader, headers = Reader(raw), list[tuple[Typed, Typed]]()
    while reader.left:
        key = read_typed(reader, Code.INVALID_HEADER_KEY)
        headers.append((key, read_typed(reader, Code.INVALID_HEADER_VALUE)))
    return tuple(headers)


def encode_user_headers(headers: UserHeaders) -> bytes:
    return b"".join(encode_typed(key) + encode_typed(value) for key, value in headers)
