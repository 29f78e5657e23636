import asyncio
from asyncio import Future
from collections.abc import Callable, Sequence

from shardserver.io_uring.open_file import OpenFile
from shardserver.io_uring.queues import Queues
from shardserver.storage.disk import Ended

ENTRIES: int

class Ring:
    def __init__(self, loop: asyncio.AbstractEventLoop, queues: Queues) -> None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def open_entries(self) -> int: ...
    @property
    def submissions(self) -> int: ...
    def write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        sync: bool,
        on_written: Callable[[], None] | None,
    ) -> Future[int]: ...
    def start_synced_write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        on_written: Callable[[], None] | None,
        on_end: Ended,
    ) -> None: ...
    def read(self, file: OpenFile, position: int, buffer: memoryview) -> Future[int]: ...
    def sync(self, file: OpenFile) -> Future[int]: ...
    async def close(self) -> None: ...
