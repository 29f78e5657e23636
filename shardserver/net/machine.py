"""One connection without its socket: bytes in, requests started in the right order, replies out in order of arrival.

Consecutive sends overlap; any other request starts when all earlier ones have completed. This plain version is the
specification of the compiled plane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shardserver.errors import ProtocolError
from shardserver.protocol.frame import HEADER_BYTES, Frame, FrameDecoder

OP_SEND = 160
Buffers = list[bytes | bytearray | memoryview]
Reply = Callable[[Buffers, bool], None]
StartRequest = Callable[[Frame, Reply], None]


@dataclass(slots=True, eq=False)
class Slot:
    """A request and, once it has completed, its reply."""

    frame: Frame | None
    is_send: bool
    bytes: int
    started: bool = False
    reply: Buffers | None = None
    closes: bool = False


@dataclass(slots=True)
class ConnectionMachine:
    """start_request begins a request; what it gets completes it, at once or later: the reply, and whether to close."""

    start_request: StartRequest
    max_frame_bytes: int
    in_flight_limit: int
    close_reason: str = ""
    in_flight_bytes: int = 0
    frames: int = 0
    _decoder: FrameDecoder = field(init=False)
    _slots: deque[Slot] = field(default_factory=deque)
    _output: Buffers = field(default_factory=list)
    is_closed: bool = False
    _advancing: bool = False

    def __post_init__(self) -> None:
        self._decoder = FrameDecoder(self.max_frame_bytes)

    @property
    def wants_more(self) -> bool:
        """False: read no more from this socket until replies have left."""
        return not self.close_reason and self.in_flight_bytes < self.in_flight_limit

    @property
    def unread_bytes(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return self._decoder.buffered_bytes

    def take_unread(self) -> bytes:
        """Them, for a connection that goes on elsewhere."""
        return self._decoder.take_buffered()

    @property
    def is_idle(self) -> bool:
        return not self._slots and not self._output

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the socket; what can start, starts."""
        if self.close_reason:
            return
        self._decoder.feed(data)
        try:
            while (frame := self._decoder.next_frame()) is not None:
                size = HEADER_BYTES + len(frame.body)
                self.frames += 1
                self.in_flight_bytes += size
                self._slots.append(Slot(frame, frame.header.operation == OP_SEND, size))
        except ProtocolError as error:
            self.close_reason = str(error)
        self._advance()

    def close(self, reason: str) -> None:
        """Answer nothing more; late completions are ignored."""
        self.close_reason = self.close_reason or reason
        self.is_closed = True
        self._slots.clear()

    def take_output(self) -> Buffers:
        """Reply bytes that are due, in order."""
        output, self._output = self._output, []
        return output

    def _advance(self) -> None:
        if self._advancing:  # a request that completes at once calls back into here
            return
        self._advancing = True
        while self._start_next() or self._release_first():
            pass
        self._advancing = False

    def _start_next(self) -> bool:
        for slot in self._slots:
            if slot.started:
                if not slot.is_send:
                    return False
                continue
            if not slot.is_send and slot is not self._slots[0]:
                return False
            self._start(slot)
            return True
        return False

    def _start(self, slot: Slot) -> None:
        frame, slot.frame, slot.started = slot.frame, None, True
        assert frame is not None

        def reply(buffers: Buffers, closes: bool) -> None:
            if self.is_closed or slot.reply is not None:
                return
            slot.reply, slot.closes = buffers, closes
            self._advance()

        self.start_request(frame, reply)

    def _release_first(self) -> bool:
        if not self._slots or self._slots[0].reply is None:
            return False
        slot = self._slots.popleft()
        assert slot.reply is not None
        self._output += slot.reply
        self.in_flight_bytes -= slot.bytes
        if slot.closes:
            self.close("a request failed inside the server")
        return True
