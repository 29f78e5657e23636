from collections.abc import Callable, Sequence

from shardserver.errors import StorageError
from shardserver.storage.disk import Disk, File, GroupWrite, Step
from shardserver.storage.sync_times import SyncTimes

SLOW_S: float

class SyncFaults:
    own: int
    others: Callable[[], int] | None
    on_fault: Callable[[int], None] | None
    on_slow: Callable[[str, float, int], None] | None
    times: SyncTimes | None
    slow_s: float
    def __init__(
        self,
        own: int = 0,
        others: Callable[[], int] | None = None,
        on_fault: Callable[[int], None] | None = None,
        on_slow: Callable[[str, float, int], None] | None = None,
        slow_s: float = SLOW_S,
    ) -> None: ...
    @property
    def number(self) -> int: ...
    def note(self) -> None: ...

async def write_synced(
    disk: Disk,
    faults: SyncFaults,
    file: File,
    position: int,
    buffers: Sequence[memoryview],
    on_written: Callable[[], None] | None = None,
) -> None: ...
async def cut_synced(disk: Disk, faults: SyncFaults, file: File, length: int) -> None: ...
async def sync_noted(disk: Disk, faults: SyncFaults, file: File, since: int) -> None: ...
async def sync_written(
    disk: Disk, faults: SyncFaults, file: File, since: int, writes: Sequence[tuple[int, Sequence[memoryview]]]
) -> None: ...
async def sync_directory_noted(disk: Disk, faults: SyncFaults, path: str, since: int) -> None: ...
async def write_group_synced(
    disk: Disk, faults: SyncFaults, writes: Sequence[GroupWrite]
) -> list[StorageError | None]: ...
async def do_steps_noted(
    disk: Disk, faults: SyncFaults, chains: int, steps: Sequence[Step]
) -> tuple[list[StorageError | None], dict[str, File]]: ...
