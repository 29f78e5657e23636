from collections.abc import Callable

from shardserver.storage.append_log import AppendLog

class PollRoute:
    uid: int
    def __init__(
        self,
        log: AppendLog,
        committed: Callable[[], int | None],
        commit: Callable[[int], None],
        max_bytes: int,
        may_poll: Callable[[], bool] | None = None,
        note_delivered: Callable[[int], None] | None = None,
    ) -> None: ...
    def take_load(self) -> tuple[int, int]: ...
