"""Frames: the 256-byte headers of requests, replies and evictions (framing 1-6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import xxhash

from shardserver.errors import Code, ProtocolError, RejectedError

HEADER_BYTES = 256
MAX_FRAME_BYTES = 64 << 20
COMMAND_REQUEST, COMMAND_REPLY, COMMAND_EVICTION = 5, 8, 13
RESULT_OK = bytes(4)

_SIZE = struct.Struct("<I")
# Fields in the order of RequestHeader, with the command between size and client (framing 2).
_REQUEST = struct.Struct("<48xI8xB67x16s16sQQB7xQII56x")
_REPLY = struct.Struct("<48xIIIB67x16s16x16sQQQQB7xI36x")
_EVICTION = struct.Struct("<48xIIIB67x16sII103xB")


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """client and request_checksum are raw 16 bytes, echoed as they are. code is meaningful for operation 2."""

    size: int
    client: bytes
    request_checksum: bytes
    timestamp: int
    request: int
    operation: int
    session: int
    user_id: int
    code: int

    @classmethod
    def decode(cls, raw: memoryview | bytes) -> Self:
        """From at least 256 bytes. Size and command have been checked already."""
        size, _, *rest = _REQUEST.unpack_from(raw)
        return cls(size, *rest)

    def encode(self) -> bytes:
        head = (self.size, COMMAND_REQUEST, self.client, self.request_checksum, self.timestamp, self.request)
        return _REQUEST.pack(*head, self.operation, self.session, self.user_id, self.code)


@dataclass(frozen=True, slots=True)
class Frame:
    header: RequestHeader
    body: memoryview


@dataclass(frozen=True, slots=True)
class ReplyHeader:
    """client and request_checksum are raw 16 bytes of the request. status 0: see the body; else an error code."""

    size: int
    request_checksum: bytes
    client: bytes
    op: int
    commit: int
    timestamp: int
    request: int
    operation: int
    status: int

    @classmethod
    def decode(cls, raw: memoryview | bytes) -> Self:
        """From at least 256 bytes. Raises ProtocolError when they are not a reply's."""
        size, _, _, command, *rest = _REPLY.unpack_from(raw)
        if command != COMMAND_REPLY or not HEADER_BYTES <= size <= MAX_FRAME_BYTES:
            raise ProtocolError(f"command {command}, size {size}: not a reply")
        return cls(size, *rest)

    def encode(self) -> bytes:
        head = (self.size, 0, 0, COMMAND_REPLY, self.request_checksum, self.client, self.op, self.commit)
        return _REPLY.pack(*head, self.timestamp, self.request, self.operation, self.status)


@dataclass(frozen=True, slots=True)
class Eviction:
    """Ends a session (framing 6.3). The versions are told with reason 14 only, packed as README 1 says."""

    client: bytes
    server_protocol_version: int
    server_protocol_version_min: int
    reason: int

    @classmethod
    def decode(cls, raw: memoryview | bytes) -> Self:
        """From at least 256 bytes. Raises ProtocolError when they are not an eviction's."""
        size, _, _, command, *rest = _EVICTION.unpack_from(raw)
        if command != COMMAND_EVICTION or size != HEADER_BYTES:
            raise ProtocolError(f"command {command}, size {size}: not an eviction")
        return cls(*rest)

    def encode(self) -> bytes:
        versions = (self.server_protocol_version, self.server_protocol_version_min)
        return _EVICTION.pack(HEADER_BYTES, 0, 0, COMMAND_EVICTION, self.client, *versions, self.reason)


def decode_answer(raw: memoryview | bytes) -> ReplyHeader | Eviction:
    """The header of what a server sent. Raises ProtocolError."""
    return Eviction.decode(raw) if raw[60] == COMMAND_EVICTION else ReplyHeader.decode(raw)


def request_checksum(body: bytes | memoryview) -> bytes:
    """The 16 bytes of the header field that prove a body (framing 4)."""
    return xxhash.xxh3_64_intdigest(body).to_bytes(16, "little")


def encode_request(
    operation: int,
    code: int,
    body: bytes,
    *,
    client: bytes,
    request: int,
    session: int,
    checked: bool = False,
) -> bytes:
    """A whole request frame, for our own clients and tests. checked: with the checksum of the body."""
    checksum = request_checksum(body) if checked else bytes(16)
    size = HEADER_BYTES + len(body)
    return RequestHeader(size, client, checksum, 0, request, operation, session, 0, code).encode() + body


def encode_reply_header(header: RequestHeader, body_bytes: int, status: int = 0, operation: int | None = None) -> bytes:
    """The 256 bytes before a reply's body. operation: another one than the request's (framing 5)."""
    answered = header.operation if operation is None else operation
    head = (HEADER_BYTES + body_bytes, 0, 0, COMMAND_REPLY, header.request_checksum, header.client, 0, 0)
    return _REPLY.pack(*head, header.timestamp, header.request, answered, status)


def encode_status(header: RequestHeader, code: int) -> bytes:
    return encode_reply_header(header, 0, status=code)


def encode_rejection(code: int) -> bytes:
    """A result section that holds one error (framing 6.2)."""
    return struct.pack("<III", 1, 0, code)


def split_result(body: memoryview) -> tuple[list[tuple[int, int]], memoryview]:
    """Errors (index of the event, code) and payload of a body with a result section (framing 6.2).

    Raises RejectedError(3) when the count is larger than the body holds.
    """
    count = int.from_bytes(body[:4], "little")
    end = 4 + 8 * count
    if len(body) < 4 or end > len(body):
        raise RejectedError(Code.INVALID_COMMAND, f"a result section of {len(body)} bytes")
    return list(struct.iter_unpack("<II", body[4:end])), body[end:]


def encode_eviction(header: RequestHeader, reason: int, minimum: int = 0, maximum: int = 0) -> bytes:
    return Eviction(header.client, maximum, minimum, reason).encode()


def name_foreign_protocol(first: bytes) -> str:
    """What the first bytes of a connection look like when they are not ours."""
    if first[:1] == b"\x16" and first[1:2] == b"\x03":
        return "TLS; this port speaks the plain binary protocol"
    if first[:4] in (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE"):
        return "HTTP; this port speaks the binary protocol"
    if first[:2] == b"\x00\x00" and len(first) >= 8 and first[4:6] == b"\x00\x12":
        return "Kafka; this server speaks the Apache Iggy protocol"
    return ""


def check_request_header(raw: memoryview, max_frame_bytes: int) -> int:
    """The frame's size. Raises ProtocolError when the header cannot be valid: the stream cannot be resynchronised."""
    size = int(_SIZE.unpack_from(raw, 48)[0])
    foreign = name_foreign_protocol(bytes(raw[:16]))
    if foreign:
        raise ProtocolError(f"first bytes look like {foreign}")
    if not HEADER_BYTES <= size <= max_frame_bytes:
        raise ProtocolError(f"frame of {size} bytes, limits {HEADER_BYTES} and {max_frame_bytes}")
    if raw[60] != COMMAND_REQUEST:
        raise ProtocolError(f"command {raw[60]}, expected {COMMAND_REQUEST}")
    if not any(raw[128:144]):
        raise ProtocolError("client id 0")
    return size


class FrameDecoder:
    """Cuts a byte stream into frames. A frame's body is a view of bytes of its own."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._size = 0

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def take_buffered(self) -> bytes:
        """What is no whole frame yet; it can be fed to another decoder."""
        taken, self._buffer, self._size = bytes(self._buffer), bytearray(), 0
        return taken

    def feed(self, data: bytes | memoryview) -> None:
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes arrive. Raises ProtocolError."""
        if self._size == 0:
            if len(self._buffer) < HEADER_BYTES:
                self._refuse_foreign()
                return None
            with memoryview(self._buffer) as view:
                self._size = check_request_header(view, self._max_frame_bytes)
        if len(self._buffer) < self._size:
            return None
        raw = memoryview(bytes(memoryview(self._buffer)[: self._size]))
        del self._buffer[: self._size]
        self._size = 0
        return Frame(RequestHeader.decode(raw), raw[HEADER_BYTES:])

    def _refuse_foreign(self) -> None:
        foreign = name_foreign_protocol(bytes(self._buffer[:16]))
        if foreign:
            raise ProtocolError(f"first bytes look like {foreign}")
