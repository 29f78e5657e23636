from shardserver.memory.buffers import Buffer

class Readback:
    next_offset: int
    messages: int
    hash: int
    fault: str | None
    def take(self, batches: Buffer) -> int: ...
