"""The read-back finds what a server may do wrong with what it has acknowledged."""

from __future__ import annotations

import struct

import pytest
import xxhash

from shardserver.bench.outcome import Acknowledged
from shardserver.bench.plan import Shape
from shardserver.bench.readback import Readback
from shardserver.bench.verify import find_faults
from shardserver.client.requests import PollReply
from shardserver.protocol.batch import slice_batch, stamp_batch
from tests.batches import make_batch

SHAPE = Shape.fixed(2, 5)
PAYLOADS = [b"zero-", b"one--", b"two--", b"three", b"four-", b"five-"]


def stored(payloads: list[bytes], *, size: int = 2, first: int = 0) -> list[bytearray]:
    """Batches of `size` messages at consecutive offsets."""
    made = []
    for place in range(0, len(payloads), size):
        batch = make_batch(payloads[place : place + size])
        stamp_batch(batch, 0, first + place, 1)
        made.append(batch)
    return made


def numbered(batch: bytearray, connection: int, number: int) -> bytearray:
    """The first message as the load stamps it: its id says which batch of which connection it begins."""
    size = 48 + struct.unpack_from("<I", batch, 256 + 36)[0]
    struct.pack_into("<QQ", batch, 256 + 8, number, connection)
    struct.pack_into("<Q", batch, 256, xxhash.xxh3_64_intdigest(batch[264 : 256 + size]))
    stamp_batch(batch, 0, *struct.unpack_from("<QQ", batch, 8))
    return batch


def acknowledged(batches: list[bytearray]) -> Acknowledged:
    """Computed from the definition (batches.pxd), not by the code under test."""
    count, total = 0, 0
    for batch in batches:
        base, (messages,) = struct.unpack_from("<Q", batch, 8)[0], struct.unpack_from("<I", batch, 48)
        place = 256
        for index in range(messages):
            total += xxhash.xxh3_64_intdigest(bytes(batch[place : place + 8]), base + index)
            place += 48 + struct.unpack_from("<I", batch, place + 36)[0]
        count += messages
    return Acknowledged([count], [total % 2**64])


class Log:
    """A partition that gives its batches from an offset on, one a reply."""

    def __init__(self, batches: list[bytearray]) -> None:
        self._batches = batches

    def poll(self, stream: str, topic: str, partition: int, offset: int, count: int) -> PollReply:
        for batch in self._batches:
            base, messages = struct.unpack_from("<Q", batch, 8)[0], struct.unpack_from("<I", batch, 48)[0]
            if base + messages > offset:
                return PollReply(partition, 0, messages, memoryview(batch))
        return PollReply(partition, 0, 0, memoryview(b""))


def faults(batches: list[bytearray], due: list[bytearray]) -> list[str]:
    return find_faults(Log(batches), acknowledged(due), SHAPE)


def test_a_log_that_holds_what_was_acknowledged_has_no_fault() -> None:
    assert faults(stored(PAYLOADS), stored(PAYLOADS)) == []


def test_a_batch_may_come_in_slices() -> None:
    sent = stored(PAYLOADS, size=3)
    slices = [bytearray(slice_batch(batch, *cut)) for batch in sent for cut in ((0, 0), (1, 2))]
    readback = Readback()
    assert [readback.take(one) for one in slices] == [1, 2, 1, 2]
    assert (readback.fault, readback.messages, readback.hash) == (None, 6, acknowledged(sent).hashes[0])


def test_a_message_lost_at_the_end_is_found() -> None:
    assert faults(stored(PAYLOADS[:4]), stored(PAYLOADS)) == ["partition 0: 6 messages were acknowledged, it holds 4"]


def test_a_gap_in_the_offsets_is_found() -> None:
    whole = stored(PAYLOADS)
    assert faults([whole[0], whole[2]], whole) == ["partition 0: offset 2 is due, 4 came"]


def test_a_lost_message_whose_place_was_filled_is_found() -> None:
    [fault] = faults(stored([*PAYLOADS[:2], *PAYLOADS[3:], b"extra"]), stored(PAYLOADS))
    assert "not those that were acknowledged" in fault


def test_a_doubled_message_is_found() -> None:
    [fault] = faults(stored([*PAYLOADS, PAYLOADS[-1]], size=1), stored(PAYLOADS, size=1))
    assert fault.endswith("6 messages were acknowledged, it holds 7")


def test_a_doubled_batch_is_found_where_it_lies() -> None:
    due = [numbered(batch, 3, number) for number, batch in enumerate(stored(PAYLOADS), 1)]
    again = numbered(stored(PAYLOADS[4:], first=6)[0], 3, 3)
    [fault] = faults([*due, again], due)
    assert fault == "partition 0: offset 6: batch 3 of connection 3 behind its batch 3"


@pytest.mark.parametrize("size", [1, 2])
def test_two_swapped_messages_are_found(size: int) -> None:
    swapped = [PAYLOADS[1], PAYLOADS[0], *PAYLOADS[2:]]
    [fault] = faults(stored(swapped, size=size), stored(PAYLOADS, size=size))
    assert "not those that were acknowledged" in fault


def test_swapped_batches_are_found_even_when_they_were_acknowledged_so() -> None:
    batches = stored(PAYLOADS[:4])
    wrong = [numbered(batches[0], 3, 2), numbered(batches[1], 3, 1)]
    assert faults(wrong, wrong) == ["partition 0: offset 2: batch 1 of connection 3 behind its batch 2"]


def test_a_changed_byte_is_found() -> None:
    batches = stored(PAYLOADS)
    batches[1][-1] ^= 1
    assert faults(batches, stored(PAYLOADS)) == ["partition 0: offset 3: the message's checksum is wrong"]


def test_a_changed_header_is_found() -> None:
    batches = stored(PAYLOADS)
    batches[1][24] ^= 1
    assert faults(batches, stored(PAYLOADS)) == ["partition 0: offset 2: the batch's count or checksum is wrong"]


@pytest.mark.parametrize("place, value", [(32, 10), (32, 10**6), (256 + 36, 10**6)])
def test_lengths_that_lead_outside_are_faults(place: int, value: int) -> None:
    batches = stored(PAYLOADS)
    struct.pack_into("<I", batches[0], place, value)
    [fault] = faults(batches, stored(PAYLOADS))
    assert fault.startswith("partition 0: offset 0: a ")


def test_every_partition_is_read() -> None:
    due = acknowledged(stored(PAYLOADS))
    both = Acknowledged(due.messages * 2, [due.hashes[0], 1])
    [fault] = find_faults(Log(stored(PAYLOADS)), both, SHAPE)
    assert fault.startswith("partition 1: ")
