"""Every schedule of a publish beside a park, on ring.pyx itself: the fences are missed without luck."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import pytest

from shardserver.router.ring_python import make_ring, ring_bytes
from tests.router.ring_model import Memory, compile_ring, explore

SLOTS = 2


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    yield compile_ring(tmp_path_factory.mktemp("ring"))
    if hasattr(sys, "ring_memory"):
        del sys.ring_memory


def publish_beside_a_park(ring: ModuleType, memory: Memory) -> tuple[bool, bool]:
    """Whether the consumer sleeps, and whether the producer has to ring its doorbell."""
    sys.ring_memory = memory  # type: ignore[attr-defined]
    shared = memoryview(bytearray(ring_bytes(SLOTS)))
    make_ring(shared, SLOTS)
    producer, consumer = ring.Producer(shared), ring.Consumer(shared)
    told: dict[str, bool] = {}

    def publish() -> None:
        assert producer.try_push(1, 0, 0, 7, 0, b"", False)
        told["rings"] = producer.publish()

    def park() -> None:
        told["sleeps"] = consumer.try_park()

    memory.run({"producer": publish, "consumer": park})
    return told["sleeps"], told["rings"]


def test_no_schedule_lets_a_consumer_sleep_beside_a_slot_without_its_doorbell(ring: ModuleType) -> None:
    seen = Counter(publish_beside_a_park(ring, memory) for memory in explore())
    assert seen[True, False] == 0, f"of {seen.total()} schedules {seen[True, False]} lose the doorbell"
    assert seen[True, True] and seen[False, False], "the schedules reach both plain ends"
    assert seen.total() > 50
