"""The tail against a plain list."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.storage import tail as compiled
from shardserver.storage import tail_python as plain
from shardserver.storage.tail_python import TailEntry


@pytest.mark.parametrize("module", [compiled, plain], ids=["compiled", "plain"])
@given(steps=st.lists(st.tuples(st.sampled_from(["append", "evict", "cut", "look"]), st.integers(0, 40)), max_size=60))
def test_it_gives_what_a_list_would_give(module: Any, steps: list[tuple[str, int]]) -> None:
    total = module.TailTotal()
    tail, model, end = module.Tail(total), [], 0
    for step, number in steps:
        first = model[0].base_offset if model else end
        if step == "append":
            entry = TailEntry(end, number % 3 + 1, 0, bytearray(number))
            tail.append(entry)
            model.append(entry)
            end = entry.end_offset
        elif step == "evict":
            limit = first + number
            gone = len(model[0].data) if model and model[0].end_offset <= limit else 0
            if model and model[0].end_offset <= limit:
                model.pop(0)
            assert tail.evict_oldest(limit) == gone
        elif step == "cut":
            offset = max(first, end - number)
            tail.cut_from(offset)
            model = [one for one in model if one.base_offset < offset]
            end = model[-1].end_offset if model else offset
        offset = first + number
        assert list(tail.from_offset(offset)) == [one for one in model if one.end_offset > offset]
        assert tail.at(offset) == next((one for one in model if one.end_offset > offset), None)
        assert tail.bytes_from(offset) == sum(len(one.data) for one in model if one.end_offset > offset)
        assert (len(tail), tail.bytes) == (len(model), sum(len(one.data) for one in model))
        assert total.bytes == tail.bytes
        assert tail.first_offset == (model[0].base_offset if model else None)
    tail.leave_total()
    assert total.bytes == 0
    tail.append(TailEntry(end, 1, 0, bytearray(9)))
    assert total.bytes == 0


@pytest.mark.parametrize("module", [compiled, plain], ids=["compiled", "plain"])
def test_its_newest_may_go_while_they_are_not_in_the_array_yet(module: Any) -> None:
    for before, gone, more in itertools.product(range(10), range(10), range(10)):
        tail = module.Tail(module.TailTotal())
        for offset in range(before):
            tail.append(TailEntry(offset, 1, 0, bytearray(offset)))
        for _ in range(min(before, gone)):
            tail.evict_oldest(before)
        for offset in range(before, before + more):
            tail.append(TailEntry(offset, 1, 0, bytearray(offset)))
        assert [one.base_offset for one in tail.from_offset(0)] == list(range(min(before, gone), before + more))
        end = max(0, before + more - 2)
        tail.cut_from(end)
        assert [one.base_offset for one in tail.from_offset(0)] == list(range(min(before, gone), end))


def test_an_array_that_has_grown_large_is_a_mapping_of_small_pages_and_goes_with_its_tail() -> None:
    count, entry_bytes = 20_000, 56
    small = small_page_bytes()
    tail = compiled.Tail(compiled.TailTotal())
    for offset in range(count):
        tail.append(TailEntry(offset, 1, 0, bytearray(1)))
        if offset in (2_000, 5_000, count - 1):  # it was moved, grown, and grown once more
            assert [one.base_offset for one in tail.from_offset(0)] == list(range(offset + 1))
    assert small_page_bytes() - small >= count * entry_bytes
    del tail
    assert small_page_bytes() - small < count * entry_bytes


def small_page_bytes() -> int:
    """Of all mappings of this process that are to have no huge pages."""
    found = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = int(value.split()[0]) << 10
        elif name == "VmFlags" and "nh" in value.split():
            found += size
    return found
