"""Frames: the 256-byte headers of requests, replies and evictions (framing 1-6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardserver.errors import ProtocolError

HEADER_BYTES = 256
MAX_FRAME_BYTES = 64 << 20
COMMAND_REQUEST, COMMAND_REPLY, COMMAND_EVICTION = 5, 8, 13
RESULT_OK = bytes(4)

# From 128 on: client, checksum, timestamp, request, operation, session, user, code (framing 2).
_SIZE = struct.Struct("<I")
_TAIL = struct.Struct("<16s16sQQB7xQII")
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


@dataclass(frozen=True, slots=True)
class Frame:
    header: RequestHeader
    body: memoryview


def decode_request_header(raw: memoryview) -> RequestHeader:
    """Decode 256 bytes. The size has been checked already."""
    return RequestHeader(_SIZE.unpack_from(raw, 48)[0], *_TAIL.unpack_from(raw, 128))


def encode_request(operation: int, code: int, body: bytes, *, client: bytes, request: int, session: int) -> bytes:
    """A whole request frame, for our own clients and tests."""
    head = bytearray(HEADER_BYTES)
    _SIZE.pack_into(head, 48, HEADER_BYTES + len(body))
    head[60] = COMMAND_REQUEST
    _TAIL.pack_into(head, 128, client, bytes(16), 0, request, operation, session, 0, code)
    return bytes(head) + body


def encode_reply_header(header: RequestHeader, body_bytes: int, status: int = 0, operation: int | None = None) -> bytes:
    """The 256 bytes before a reply's body. operation: another one than the request's (framing 5)."""
    return _REPLY.pack(
        HEADER_BYTES + body_bytes,
        0,
        0,
        COMMAND_REPLY,
        header.request_checksum,
        header.client,
        0,
        0,
        header.timestamp,
        header.request,
        header.operation if operation is None else operation,
        status,
    )


def encode_status(header: RequestHeader, code: int) -> bytes:
    return encode_reply_header(header, 0, status=code)


def encode_rejection(code: int) -> bytes:
    """A result section that holds one error (framing 6.2)."""
    return struct.pack("<III", 1, 0, code)


def encode_eviction(header: RequestHeader, reason: int, minimum: int = 0, maximum: int = 0) -> bytes:
    return _EVICTION.pack(HEADER_BYTES, 0, 0, COMMAND_EVICTION, header.client, maximum, minimum, reason)


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
        return Frame(decode_request_header(raw), raw[HEADER_BYTES:])

    def _refuse_foreign(self) -> None:
        foreign = name_foreign_protocol(bytes(self._buffer[:16]))
        if foreign:
            raise ProtocolError(f"first bytes look like {foreign}")
