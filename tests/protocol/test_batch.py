"""Batches in wire layout: one suite for the compiled module and for its plain-Python twin, and the two compared."""

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserver.protocol import batch as compiled
from shardserver.protocol import batch_python as plain
from tests.batches import make_batch, payloads_of

PAYLOADS = [b"zero", b"", b"two two", b"3" * 300]


@pytest.fixture(params=[compiled, plain], ids=["compiled", "plain"])
def batches(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def resealed(batch: bytearray) -> bytearray:
    """With a batch checksum that covers what the batch holds now."""
    plain._U64.pack_into(batch, 40, plain._batch_checksum(memoryview(batch)))
    return batch


def test_a_producers_batch_is_good(batches: ModuleType) -> None:
    assert batches.verify_batch(make_batch(PAYLOADS), 4) == 0
    assert batches.verify_batch(bytes(make_batch([b""])), 1) == 0


def test_a_count_that_is_not_the_batchs_is_refused(batches: ModuleType) -> None:
    for count in (0, 3, 5, 1 << 32, (1 << 32) + 4, (1 << 64) - 1):
        assert batches.verify_batch(make_batch(PAYLOADS), count) == 3


def test_a_batch_without_messages_is_refused(batches: ModuleType) -> None:
    assert batches.verify_batch(make_batch([]), 0) == 3
    assert batches.check_stored_batch(make_batch([]), 1000) == 0


def test_each_kind_of_damage_has_its_code(batches: ModuleType) -> None:
    for position, code in ((0, 4039), (24, 4039), (40, 4039), (32, 3), (48, 3), (52, 3), (255, 3), (256, 4027)):
        damaged = make_batch(PAYLOADS)
        damaged[position] ^= 1
        assert batches.verify_batch(damaged, 4) == code, position
    for position, code in ((264, 4027), (280, 3), (284, 4027), (288, 3), (292, 3), (296, 3), (303, 3), (304, 4027)):
        damaged = make_batch(PAYLOADS)
        damaged[position] ^= 1
        assert batches.verify_batch(damaged, 4) == code, position


def test_messages_of_every_length_are_hashed_as_the_library_does(batches: ModuleType) -> None:
    for size in [*range(600), *range(900, 1100), 4096, 70_000, 1_000_003]:
        batch = make_batch([bytes(range(256)) * (size // 256) + bytes(size % 256)])
        assert batches.verify_batch(batch, 1) == 0, size
        batch[-1] ^= 1
        assert batches.verify_batch(batch, 1) == (4027 if size else 3), size


def test_a_broken_structure_is_told_before_a_wrong_checksum(batches: ModuleType) -> None:
    damaged = make_batch(PAYLOADS)
    damaged[256] ^= 1
    damaged[-300 - 48 + 40] = 1  # reserved field of the last message
    assert batches.verify_batch(damaged, 4) == 3


def test_lengths_that_lie_are_refused(batches: ModuleType) -> None:
    for position in (288, 292):  # headers and payload of the first message
        for length in (1, 1 << 16, (1 << 32) - 1, (1 << 32) - 48):
            lying = make_batch(PAYLOADS)
            lying[position : position + 4] = length.to_bytes(4, "little")
            assert batches.verify_batch(resealed(lying), 4) == 3
    for length in (0, 255, 1 << 32, (1 << 64) - 1):
        lying = make_batch(PAYLOADS)
        lying[32:40] = length.to_bytes(8, "little")
        assert batches.verify_batch(resealed(lying), 4) == 3
        assert batches.check_stored_batch(lying, 1 << 63) == batches.damaged_batch_extent(lying) == 0


def test_a_cut_batch_is_refused_at_every_length(batches: ModuleType) -> None:
    whole = bytes(make_batch(PAYLOADS))
    for length in range(len(whole)):
        assert batches.verify_batch(whole[:length], 4) == 3
        assert batches.check_stored_batch(whole[:length], len(whole)) == 0
        assert batches.damaged_batch_extent(whole[:length]) == 0


def test_a_stamp_changes_three_fields_and_the_checksum(batches: ModuleType) -> None:
    batch = make_batch(PAYLOADS)
    sent = bytes(batch)
    batches.stamp_batch(batch, 7, 1 << 40, (1 << 64) - 1)
    header = batches.read_batch_header(batch)
    assert header[:3] == (7, 1 << 40, (1 << 64) - 1)
    assert header.message_count == 4 and header.batch_length == len(sent)
    assert batch[24:40] == sent[24:40] and batch[48:] == sent[48:]
    assert batches.verify_batch(batch, 4) == 0


def test_a_stored_batch_is_found_with_bytes_behind_it(batches: ModuleType) -> None:
    batch = bytes(make_batch(PAYLOADS))
    assert batches.check_stored_batch(batch + b"tail", len(batch) + 4) == len(batch)
    assert batches.check_stored_batch(batch, len(batch)) == len(batch)
    assert batches.check_stored_batch(batch, len(batch) - 1) == 0
    assert batches.check_stored_batch(b"", 0) == 0


def test_a_batch_with_a_damaged_payload_can_be_stepped_over(batches: ModuleType) -> None:
    damaged = make_batch(PAYLOADS)
    damaged[-1] ^= 1
    assert batches.check_stored_batch(damaged, len(damaged)) == 0
    assert batches.damaged_batch_extent(bytes(damaged) + b"next") == len(damaged)
    damaged[256] ^= 1  # a message checksum, which the batch checksum covers
    assert batches.damaged_batch_extent(damaged) == 0


def test_a_batch_without_messages_is_nothing_to_step_over(batches: ModuleType) -> None:
    assert batches.damaged_batch_extent(resealed(make_batch([]))) == 0


def test_a_slice_is_a_good_batch_of_the_wanted_messages(batches: ModuleType) -> None:
    batch = make_batch(PAYLOADS)
    batches.stamp_batch(batch, 1, 100, 5)
    for first in range(4):
        for last in range(first, 4):
            sliced = batches.slice_batch(batch, first, last)
            assert payloads_of(sliced) == PAYLOADS[first : last + 1]
            header = batches.read_batch_header(sliced)
            assert header.base_offset == 100 and header.message_count == last - first + 1
            assert plain._batch_checksum(memoryview(sliced)) == header.batch_checksum
    assert batches.slice_batch(batch, 0, 3) == batch


def test_a_slice_without_messages_is_a_header(batches: ModuleType) -> None:
    sliced = batches.slice_batch(make_batch(PAYLOADS), 4, 9)
    assert len(sliced) == 256 and batches.read_batch_header(sliced).message_count == 0


def test_fewer_bytes_than_a_header_are_refused(batches: ModuleType) -> None:
    for length in (0, 1, 255):
        assert batches.verify_batch(bytes(length), 1) == 3
        with pytest.raises(ValueError):
            batches.read_batch_header(bytes(length))
        with pytest.raises(ValueError):
            batches.stamp_batch(bytearray(length), 0, 0, 0)
        with pytest.raises(ValueError):
            batches.slice_batch(bytes(length), 0, 0)


def test_a_frame_past_the_end_cannot_be_sliced_and_a_stamp_stops_before_it(batches: ModuleType) -> None:
    lying = make_batch(PAYLOADS)
    lying[292:296] = b"\xff\xff\xff\xff"
    with pytest.raises(ValueError):
        batches.slice_batch(lying, 0, 3)
    batches.stamp_batch(lying, 1, 2, 3)
    assert batches.read_batch_header(lying)[:3] == (1, 2, 3)


# Both modules on the same hostile bytes


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A batch with bytes changed, cut or added; at times its length and batch checksum are made good again."""
    batch = make_batch(draw(st.lists(st.binary(max_size=40), max_size=5)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.sampled_from([24, 32, 33, 40, 48, 52, 255, 256, 280, 288, 291, 292, 296]) | st.integers(0, 600))
        if place < len(batch):
            batch[place] = draw(st.integers(0, 255))
    cut = draw(st.none() | st.integers(0, len(batch)))
    batch = batch[:cut] if cut is not None else batch + draw(st.binary(max_size=60))
    if len(batch) >= 256 and draw(st.booleans()):
        batch[32:40] = len(batch).to_bytes(8, "little")
        resealed(batch)
    return bytes(batch)


def outcome(function, *arguments) -> object:
    try:
        return function(*arguments)
    except ValueError as error:
        return type(error), str(error)


@settings(max_examples=400)
@given(mutated() | st.binary(max_size=700), st.integers(0, 6), st.integers(0, 6), st.integers(0, 1 << 64))
def test_both_modules_agree_on_any_bytes(data: bytes, first: int, last: int, limit: int) -> None:
    limit = min(limit, (1 << 64) - 1)
    for count in (first, int.from_bytes(data[48:52], "little")):
        assert compiled.verify_batch(data, count) == plain.verify_batch(data, count)
    assert compiled.check_stored_batch(data, limit) == plain.check_stored_batch(data, limit)
    assert compiled.check_stored_batch(data, len(data)) == plain.check_stored_batch(data, len(data))
    assert compiled.damaged_batch_extent(data) == plain.damaged_batch_extent(data)
    assert outcome(compiled.read_batch_header, data) == outcome(plain.read_batch_header, data)
    assert outcome(compiled.slice_batch, data, first, last) == outcome(plain.slice_batch, data, first, last)
    stamped = [bytearray(data), bytearray(data)]
    stamps = (first, limit, last)
    results = [
        outcome(compiled.stamp_batch, stamped[0], *stamps),
        outcome(plain.stamp_batch, stamped[1], *stamps),
    ]
    assert results[0] == results[1] and stamped[0] == stamped[1]
