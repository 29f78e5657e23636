from array import array
from typing import NamedTuple

class LoadResult(NamedTuple):
    answered: int
    refused: int
    first_status: int
    messages: int
    empty: int
    window_answered: int
    window_messages: int
    window_bytes: int
    recorded: int
    unrecorded: int

def run_load(
    socket: int,
    frame: bytes | memoryview,
    latencies: memoryview,
    *,
    depth: int,
    measure_from_ns: int,
    until_ns: int,
    messages_per_request: int = 0,
    offset_at: int = 0,
    offset_step: int = 0,
    offset_end: int = 0,
    follow: bool = False,
) -> LoadResult: ...
def sort_latencies(latencies: array[int] | memoryview) -> None: ...
