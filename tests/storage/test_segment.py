"""Reading runs."""

from shardserver.protocol.batch import stamp_batch
from shardserver.storage.segment import walk_batches
from tests.batches import make_batch


def test_a_batch_of_partition_0_just_before_a_block_boundary_is_not_taken_for_padding() -> None:
    head = 256 + 48
    for short in range(1, 9):
        first, second = make_batch([b"x" * (4096 - head - short)]), make_batch([b"second"])
        stamp_batch(first, 0, 5, 1)
        stamp_batch(second, 0, 6, 1)
        found = list(walk_batches(memoryview(bytes(first + second)), 4096, 5))
        assert [batch.base_offset for batch in found] == [5, 6], short
