"""make simulate: random lives of simulated servers, for a time budget.

Prints how often what happened. Ends at the first broken promise, with its seed and the shortest plan that still shows
it: `play(plan)` of tests/simulation/life.py replays it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter

from tests.simulation.life import Outcome, play
from tests.simulation.plan import Plan
from tests.simulation.shrink import shrink

# A run that is long enough to judge has each of these.
LONG_RUN_S = 60.0
EXPECTED = (
    "acknowledged and lost: memory, kill",
    "acknowledged and lost: memory, power loss",
    "acknowledged and lost: write, power loss",
    "crash points",
    "deaths amid a partition's healing",
    "deaths amid healing",
    "deaths in recovery",
    "direct runs",
    "errors amid healing",
    "failed reads",
    "failed syncs",
    "failed syncs of directories",
    "failed operations",
    "flipped bits: index, no effect",
    "flipped bits: journal, reported",
    "flipped bits: segment, reported",
    "flushes",
    "full disks",
    "healings",
    "journal growth",
    "journal reuses",
    "late writes that landed after a start",
    "messages acknowledged",
    "messages polled",
    "nearly full disks",
    "offsets committed",
    "other numbers of shards",
    "partitions healed, no death",
    "partitions moved",
    "power losses amid healing",
    "power losses",
    "purges",
    "read-only starts",
    "recoveries checked",
    "restarts of a shard",
    "rolls",
    "segments cut",
    "sends refused by read-only shards",
    "steps",
)


def explain(plan: Plan, outcome: Outcome) -> None:
    traceback.print_exception(outcome.error)
    kind = type(outcome.error)
    print(f"BROKEN: seed {plan.seed}: {outcome.error!r}; looking for a shorter plan", flush=True)
    shortest = shrink(plan, lambda tried: isinstance(play(tried).error, kind))
    print(f"BROKEN: seed {plan.seed}, {len(shortest.steps)} of {len(plan.steps)} steps: {play(shortest).error!r}")
    print(f"play({shortest})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first life; a single one with --seconds 0")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    first, end, counts = seed, time.monotonic() + arguments.seconds, Counter[str]()
    print(f"first seed {first}", flush=True)
    while True:
        plan = Plan.draw(seed)
        outcome = play(plan)
        counts.update(outcome.counts)
        if outcome.error is not None:
            explain(plan, outcome)
            return 1
        seed += 1
        if time.monotonic() >= end:
            break
    return report(counts, seed - first, judge=arguments.seconds >= LONG_RUN_S)


def report(counts: Counter[str], seeds: int, *, judge: bool) -> int:
    for kind, count in sorted(counts.items()):
        print(f"{count:8}  {kind}")
    missing = [kind for kind in EXPECTED if not counts[kind]]
    print(f"{seeds} seeds, {counts['steps']} steps, {counts['crash points']} crash points, 0 violations")
    if missing:
        print(f"never happened: {', '.join(missing)}")
    return 1 if missing and judge else 0


if __name__ == "__main__":
    sys.exit(main())
