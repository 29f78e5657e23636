"""Simulated lives of a server: some seeds, and that the simulation itself is to be trusted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.fault_disk import BLOCK_BYTES, FaultFile, Node
from tests.process_disk import Locks
from tests.simulation.disk import CountingDisk, WorldDisk
from tests.simulation.life import play
from tests.simulation.plan import Plan, Step
from tests.simulation.shrink import shrink


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_simulated_server_keeps_its_promises(seed: int) -> None:
    plan = Plan.draw(seed)
    outcome = play(plan)
    if outcome.error is not None:
        raise AssertionError(f"play({plan})") from outcome.error


def test_a_process_that_dies_while_it_writes_leaves_writes_that_land_after_the_next_start() -> None:
    """Once a file's lock is taken none is left of it (storage rule 15)."""
    data, seen = memoryview(b"x" * BLOCK_BYTES), Counter[bool]()

    async def life(seed: int) -> None:
        disk = WorldDisk(seed)
        dying, next_one = (CountingDisk(disk, Locks(), seed) for _ in range(2))
        dying.died = dying.kill
        file: FaultFile = await dying.open("a", create=True)
        dying.die_at = dying.operations + 1
        dying.write(file, 0, [data])
        disk.mark_late()
        before = bytes(file.node.current)
        await next_one.open("a")
        assert not disk._ghosts
        late = disk.counts["late writes that landed after a start"]
        assert (before != bytes(file.node.current)) == bool(late)
        seen[bool(late)] += 1

    for seed in range(20):
        asyncio.run(life(seed))
    assert seen[True] and seen[False]


def test_a_seed_replays_exactly_in_any_process() -> None:
    code = "from tests.simulation.life import play, Plan; print(play(Plan.draw(4, 12)).trace)"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(number), "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        )
        for number in (1, 2)
    ]
    assert runs[0].stdout == runs[1].stdout != b"0\n"


def test_a_server_whose_syncs_do_nothing_is_found_out_and_its_plan_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that forgets breaks nothing while the power is on."""
    monkeypatch.setattr(Node, "sync", lambda self: None)
    broken = (Plan.draw(seed) for seed in range(20))
    plan = next(plan for plan in broken if play(plan).error is not None)

    shortest = shrink(plan, lambda tried: play(tried).error is not None, tries=30)
    assert len(shortest.steps) < len(plan.steps) and play(shortest).error is not None


def test_a_shrunken_plan_has_just_the_steps_that_matter() -> None:
    plan = Plan.draw(1)
    needed = {plan.steps[3], plan.steps[17]}
    shortest = shrink(plan, lambda tried: needed <= set(tried.steps))
    assert set(shortest.steps) == needed


def test_a_plan_is_printed_as_what_makes_it() -> None:
    plan = Plan.draw(3)
    assert eval(str(plan), {"Plan": Plan, "Step": Step}) == plan
