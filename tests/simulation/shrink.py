"""A failing plan made short: steps are dropped, many at a time, then fewer, while it still fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulation.plan import Plan


def shrink(plan: Plan, fails: Callable[[Plan], bool], tries: int = 200) -> Plan:
    """The shortest plan that was found in so many tries. fails(plan) holds."""
    size = max(1, len(plan.steps) // 2)
    while True:
        shorter = None
        for start in range(0, len(plan.steps), size):
            if tries <= 0:
                return plan
            tries -= 1
            tried = replace(plan, steps=plan.steps[:start] + plan.steps[start + size :])
            if fails(tried):
                shorter = tried
                break
        if shorter is not None:
            plan = shorter
        elif size == 1:
            return plan
        else:
            size //= 2
