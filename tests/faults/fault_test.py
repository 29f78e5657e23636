"""make fault-test: random lives of the log and of the metadata log on the fault Disk, for a time budget.

Prints how many fault points were tried; ends at the first broken promise with the scenario that shows it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable

from tests.storage.scenarios import Scenario, play_control, play_log, play_metadata

PLAYS: dict[str, Callable[[Scenario], bool]] = {"log": play_log, "metadata": play_metadata}


def play(name: str, scenario: Scenario, tried: Counter[str]) -> bool:
    """One scenario; False when it broke a promise, which is then printed."""
    try:
        met = PLAYS[name](scenario)
    except Exception:
        traceback.print_exc()
        print(f"BROKEN: play_{name}({scenario})")
        return False
    if met:
        tried[f"{name}: {scenario.fault}, {scenario.left}"] += 1
        tried[f"{name}: crashes inside recovery"] += len(scenario.crashes)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"seed {arguments.seed}")
    tried: Counter[str] = Counter()
    seed, end = arguments.seed, time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        seed += 1
        name = "metadata" if seed % 8 == 0 else "log"
        if not play(name, Scenario.draw(seed), tried):
            return 1
    lost = sum(play_control(one) for one in range(5))
    for kind, count in sorted(tried.items()):
        print(f"{count:7}  {kind}")
    print(
        f"crash points tried {sum(tried.values())}, lost 0, doubled 0; control under memory lost in {lost} of 5 lives"
    )
    return 0 if lost else 1


if __name__ == "__main__":
    sys.exit(main())
