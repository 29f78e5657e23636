from collections.abc import Callable
from typing import Any

from shardserver.memory.arena import Arena

class WireContext:
    arena: Arena
    revision: int
    in_flight_bytes: int
    arriving_bytes: int
    in_flight_limit: int
    def __init__(self, arena: Arena, code_of: Callable[[Any], int], in_flight_limit: int) -> None: ...

class FrameReader:
    close_reason: str
    @property
    def unread_bytes(self) -> int: ...
    def take_unread(self) -> bytes: ...
