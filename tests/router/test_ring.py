"""One ring, both ends in one process: one suite for the compiled module and for its plain-Python specification."""

from __future__ import annotations

from collections import deque
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.errors import CorruptionError
from shardserver.router import ring as compiled
from shardserver.router import ring_python as plain
from shardserver.router.ring_python import HEADER_BYTES, MAGIC, SLOT_BYTES, make_ring, read_slots, ring_bytes

IMPLEMENTATIONS = [pytest.param(compiled, id="compiled"), pytest.param(plain, id="plain")]

# docs/formats/ring.md, "Worked example", byte by byte.
EXAMPLE_SLOT = bytes.fromhex("03000100350100000700000000000000001000000000000068690000000000000000") + bytes(30)


@pytest.fixture(params=IMPLEMENTATIONS)
def rings(request: pytest.FixtureRequest) -> Any:
    return request.param


def made(slots: int = 4) -> memoryview:
    memory = memoryview(bytearray(ring_bytes(slots)))
    make_ring(memory, slots)
    return memory


def put_u64(memory: memoryview, position: int, value: int) -> None:
    memory[position : position + 8] = value.to_bytes(8, "little")


def push(producer: Any, number: int, *, is_request: bool = False) -> bool:
    return bool(producer.try_push(number % 7, 0, number, number, number << 12, b"", is_request))


def numbers(slots: list[Any]) -> list[int]:
    return [slot[3] for slot in slots]


def test_the_bytes_are_those_of_the_worked_example(rings: ModuleType) -> None:
    memory = made(2)
    producer = rings.Producer(memory)
    assert producer.try_push(3, 1, 309, 7, 4096, b"hi", True)
    producer.publish()
    header = MAGIC + (2).to_bytes(4, "little") + bytes(52) + (1).to_bytes(8, "little") + bytes(184)
    assert bytes(memory) == header + EXAMPLE_SLOT + bytes(64)


def test_the_worked_example_is_read_back(rings: ModuleType) -> None:
    memory = made(2)
    memory[HEADER_BYTES : HEADER_BYTES + SLOT_BYTES] = EXAMPLE_SLOT
    put_u64(memory, 64, 1)
    assert rings.Consumer(memory).take(10) == [(3, 1, 309, 7, 4096, b"hi" + bytes(38))]
    assert memory[128:136] == (1).to_bytes(8, "little")


def test_the_largest_values_of_all_fields_pass(rings: ModuleType) -> None:
    memory = made()
    largest = (0xFFFF, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1, (1 << 64) - 1, b"\xff" * 40)
    producer = rings.Producer(memory)
    assert producer.try_push(*largest, False)
    producer.publish()
    assert rings.Consumer(memory).take(1) == [largest]


def test_a_slot_keeps_nothing_of_what_stood_there(rings: ModuleType) -> None:
    memory = made(2)
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    for inline in (b"x" * 40, b"x" * 40, b"y"):
        producer.try_push(1, 0, 0, 0, 0, inline, False)
        producer.publish()
        (slot,) = consumer.take(1)
    assert slot[5] == b"y" + bytes(39)


@pytest.mark.parametrize("slots", [2, 4, 64])
def test_requests_take_at_most_half_of_the_slots_and_replies_all(rings: ModuleType, slots: int) -> None:
    producer = rings.Producer(made(slots))
    assert [push(producer, n, is_request=True) for n in range(slots)] == [True] * (slots // 2) + [False] * (slots // 2)
    assert [push(producer, n) for n in range(slots)] == [True] * (slots // 2) + [False] * (slots // 2)
    assert producer.free_slots() == 0


def test_a_request_fits_again_only_when_less_than_half_is_in_use(rings: ModuleType) -> None:
    memory = made(4)
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    assert all(push(producer, n) for n in range(4))
    producer.publish()
    consumer.take(2)
    assert not push(producer, 4, is_request=True)
    consumer.take(1)
    assert push(producer, 4, is_request=True)


def test_what_was_pushed_is_seen_by_nobody_before_publish(rings: ModuleType) -> None:
    memory = made()
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    push(producer, 1)
    assert (consumer.waiting(), consumer.take(9)) == (0, [])
    producer.publish()
    assert (consumer.waiting(), numbers(consumer.take(9))) == (1, [1])


def test_a_dead_producers_unpublished_slots_are_overwritten_by_the_next_one(rings: ModuleType) -> None:
    memory = made()
    first = rings.Producer(memory)
    push(first, 1)
    first.publish()
    push(first, 2)
    second = rings.Producer(memory)
    push(second, 3)
    second.publish()
    assert numbers(rings.Consumer(memory).take(9)) == [1, 3]


def test_a_new_consumer_goes_on_where_the_last_one_ended(rings: ModuleType) -> None:
    memory = made()
    producer = rings.Producer(memory)
    assert all(push(producer, n) for n in range(3))
    producer.publish()
    assert numbers(rings.Consumer(memory).take(2)) == [0, 1]
    assert numbers(rings.Consumer(memory).take(2)) == [2]


def test_take_is_bounded_and_a_limit_of_nothing_takes_nothing(rings: ModuleType) -> None:
    memory = made()
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    assert all(push(producer, n) for n in range(3))
    producer.publish()
    assert (consumer.take(0), consumer.take(-1)) == ([], [])
    assert numbers(consumer.take(2)) == [0, 1]


def test_inline_bytes_that_do_not_fit_are_refused_and_leave_no_slot(rings: ModuleType) -> None:
    producer = rings.Producer(made())
    with pytest.raises(ValueError, match="41 inline bytes"):
        producer.try_push(0, 0, 0, 0, 0, bytes(41), False)
    assert producer.free_slots() == 4
    assert producer.try_push(0, 0, 0, 0, 0, bytes(40), False)


def test_each_park_brings_one_doorbell(rings: ModuleType) -> None:
    memory = made(8)
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    push(producer, 0)
    assert not producer.publish()  # nobody sleeps
    consumer.take(9)
    for number in range(2):
        assert consumer.try_park()
        push(producer, number)
        assert producer.publish()
        push(producer, number)
        assert not producer.publish()
        assert len(consumer.take(9)) == 2


def test_a_consumer_does_not_park_beside_a_slot(rings: ModuleType) -> None:
    memory = made()
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    push(producer, 0)
    producer.publish()
    assert not consumer.try_park()
    push(producer, 1)
    assert not producer.publish()  # awake: no doorbell


def test_an_awake_consumer_gets_no_doorbell(rings: ModuleType) -> None:
    memory = made()
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    assert consumer.try_park()
    consumer.unpark()
    push(producer, 0)
    assert not producer.publish()


@pytest.mark.parametrize("distance", [5, 1 << 40, -1])
def test_a_tail_that_is_not_within_the_slots_is_corruption(rings: ModuleType, distance: int) -> None:
    memory, head = made(4), 1000
    put_u64(memory, 64, head + distance)
    put_u64(memory, 128, head)
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    for use in (consumer.waiting, consumer.try_park, producer.free_slots, lambda: consumer.take(9)):
        with pytest.raises(CorruptionError):
            use()
    with pytest.raises(CorruptionError):
        push(producer, 1)


def test_a_head_above_the_tail_is_corruption_for_the_producer(rings: ModuleType) -> None:
    memory = made(4)
    producer = rings.Producer(memory)
    put_u64(memory, 128, 1)
    with pytest.raises(CorruptionError):
        push(producer, 1)


def test_a_ring_serves_on_when_its_makers_view_is_released(rings: ModuleType) -> None:
    backing = bytearray(made())
    memory = memoryview(backing)
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    memory.release()
    with pytest.raises(BufferError):
        backing.clear()  # it would move or free what the ends point to
    push(producer, 3)
    producer.publish()
    assert numbers(consumer.take(9)) == [3]


@pytest.mark.parametrize("end", ["Producer", "Consumer"])
@given(head=st.binary(max_size=12), size=st.integers(0, 600))
def test_foreign_memory_is_no_ring(end: str, head: bytes, size: int) -> None:
    memory = memoryview(bytearray((head + bytes(size))[:size]))
    for rings in (compiled, plain):
        with pytest.raises(CorruptionError):
            getattr(rings, end)(memory)


@pytest.mark.parametrize("slots", [0, 1, 3, 8, 1 << 31])
def test_a_header_whose_slots_are_not_there_is_no_ring(rings: ModuleType, slots: int) -> None:
    memory = made(4)
    memory[8:12] = slots.to_bytes(4, "little")
    with pytest.raises(CorruptionError):
        rings.Consumer(memory)


def test_a_wrong_magic_is_no_ring() -> None:
    memory = made(4)
    assert read_slots(memory) == 4
    memory[7] += 1
    with pytest.raises(CorruptionError):
        read_slots(memory)


@pytest.mark.parametrize("slots", [-2, 0, 1, 3, 6])
def test_only_a_power_of_two_of_slots_can_be_made(slots: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ring_bytes(slots)
    with pytest.raises(ValueError, match="power of two"):
        make_ring(memoryview(bytearray(4096)), slots)


def test_too_little_memory_is_refused_by_its_maker() -> None:
    with pytest.raises(ValueError, match="bytes for 4 slots"):
        make_ring(memoryview(bytearray(ring_bytes(4) - 1)), 4)


STEPS = st.lists(st.tuples(st.sampled_from(["push", "ask", "publish", "take", "park"]), st.integers(0, 5)), max_size=80)


@given(STEPS, st.sampled_from([2, 4, 8]), st.integers(0, 9))
def test_both_give_what_a_deque_would_give(steps: list[tuple[str, int]], slots: int, start: int) -> None:
    """Also across the wrap, and byte for byte the same in both implementations."""
    memories = []
    for rings in (compiled, plain):
        memories.append(made(slots))
        put_u64(memories[-1], 64, start)
        put_u64(memories[-1], 128, start)
        follow_deque(rings, memories[-1], steps, slots)
    assert memories[0] == memories[1]


def follow_deque(rings: Any, memory: memoryview, steps: list[tuple[str, int]], slots: int) -> None:
    producer, consumer = rings.Producer(memory), rings.Consumer(memory)
    pushed, published, parked = deque[int](), deque[int](), False
    for place, (step, number) in enumerate(steps):
        used = len(pushed) + len(published)
        if step in ("push", "ask"):
            fits = used < (slots if step == "push" else slots // 2)
            assert push(producer, place, is_request=step == "ask") == fits
            pushed += [place] if fits else []
        elif step == "publish":
            assert producer.publish() == parked
            published, pushed, parked = published + pushed, deque(), False
        elif step == "take":
            assert numbers(consumer.take(number)) == [published.popleft() for _ in range(min(number, len(published)))]
        else:
            assert consumer.try_park() == (not published)
            parked = not published
        assert consumer.waiting() == len(published)
        assert producer.free_slots() == slots - len(pushed) - len(published)
