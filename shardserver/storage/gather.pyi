from shardserver.storage.run import Run, StagingPool
from shardserver.storage.tail import Tail

def build_run(
    tail: Tail, start: int, limit: int, most_bytes: int, pool: StagingPool, whole_bytes: int, mark_from: int
) -> Run: ...
