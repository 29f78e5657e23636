from typing import NamedTuple

from shardserver.memory.buffers import Buffer, WritableBuffer

BATCH_HEADER_BYTES: int
FRAME_HEADER_BYTES: int

class BatchHeader(NamedTuple):
    partition_id: int
    base_offset: int
    base_timestamp: int
    origin_timestamp: int
    batch_length: int
    batch_checksum: int
    message_count: int

def verify_batch(batch: Buffer, count: int) -> int: ...
def stamp_batch(batch: WritableBuffer, partition_id: int, base_offset: int, base_timestamp: int) -> None: ...
def check_stored_batch(view: Buffer, limit: int) -> int: ...
def read_batch_header(view: Buffer) -> BatchHeader: ...
def slice_batch(batch: Buffer, first_delta: int, last_delta: int) -> bytes: ...
def damaged_batch_extent(view: Buffer) -> int: ...
