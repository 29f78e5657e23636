"""Some seeds of the model; `make groups-model` runs more."""

import asyncio

import pytest

from tests.core.groups.model import live


@pytest.mark.parametrize("seed", range(1, 9))
def test_random_lives_of_a_group(seed: int) -> None:
    steps = asyncio.run(live(seed, 200))
    assert steps["messages"] > 0
