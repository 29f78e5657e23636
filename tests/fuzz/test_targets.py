"""The targets of `make fuzz` without a fuzzer: their seeds are good, and their plants can still be planted."""

from __future__ import annotations

import pytest

from tests.fuzz.plants import KINDS
from tests.fuzz.targets import TARGETS

NAMES = sorted(TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_takes_its_seeds_and_what_is_left_of_them_when_they_are_cut(name: str) -> None:
    run = TARGETS[name].load()
    for seed in TARGETS[name].seeds():
        assert len(seed) <= TARGETS[name].max_bytes + 1
        for length in {0, 1, len(seed) // 2, len(seed) - 1, len(seed)}:
            run(seed[:length])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_target_has_a_plant_that_changes_one_place_of_the_source(kind: str) -> None:
    assert sorted(KINDS[kind]) == NAMES
    for plant in KINDS[kind].values():
        assert plant.new in plant.planted()
