from shardserver.memory.buffers import Buffer, WritableBuffer

class Staging:
    used: int
    records: int
    def __init__(self, memory: WritableBuffer) -> None: ...
    def begin(self, room: int) -> None: ...
    def fits(self, payload_bytes: int) -> bool: ...
    def add(self, kind: int, flags: int, shard: int, uid: int, term: int, payload: Buffer) -> None: ...
    def seal(
        self,
        flags: int,
        journal_id: int,
        nonce: int,
        sequence: int,
        position: int,
        previous_sequence: int,
        previous_end: int,
        oldest_live: int,
    ) -> memoryview: ...
