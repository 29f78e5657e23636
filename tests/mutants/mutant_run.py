"""`make mutants`: rules taken out one after another, and the test that caught each. Exit code 1: one survived.

First all tests that take part run on the unchanged copy: one that fails there proves nothing about a rule.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.rules import MUTANTS, Mutant
from tests.mutants.tree import ROOT, StaleMutantError, apply, make_tree, restore

LIMIT_S = 120.0  # a test that only waits for ever has not said what is wrong: that is no catch
FAILED = re.compile(r"^FAILED (\S.*?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """found: the first failing test; empty: all passed. trouble: why the tests could not run."""

    found: str = ""
    trouble: str = ""


def run_tests(tree: Path, tests: Sequence[str], limit_s: float = LIMIT_S) -> Outcome:
    """Up to the first that fails. A test that is not there is trouble."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Outcome(trouble=f"no end within {limit_s:.0f} s")
    return judge(process.returncode, printed)


def judge(exit_code: int, printed: str) -> Outcome:
    """From pytest's exit code: 0 all passed, 1 some failed, else nothing was run."""
    failed = FAILED.search(printed)
    if exit_code == 1 and failed is not None:
        return Outcome(found=failed[1])
    return Outcome() if exit_code == 0 else Outcome(trouble=printed[-2000:])


def run_mutant(tree: Path, mutant: Mutant) -> Outcome:
    """As run_tests, with the rule taken out of the tree; it is as before afterwards."""
    try:
        apply(tree, mutant)
        return run_tests(tree, mutant.tests)
    except StaleMutantError as error:
        return Outcome(trouble=str(error))
    except subprocess.CalledProcessError as error:
        return Outcome(trouble=f"it does not compile: {error.stderr.decode()[-2000:]}")
    finally:
        restore(tree, mutant)


def show_row(name: str, rule: str, path: str, seconds: str, found: str) -> None:
    print(f"{name:18} | {rule:79} | {path:29} | {seconds:>7} | {found}", flush=True)


def show(name: str, rule: str, path: str, outcome: Outcome, seconds: float) -> None:
    found = outcome.found or ("DID NOT RUN" if outcome.trouble else "SURVIVED")
    show_row(name, rule, path.removeprefix("shardserver/"), f"{seconds:.1f}", found)
    if outcome.trouble:
        print(outcome.trouble, flush=True)


def run_all(mutants: Sequence[Mutant], seconds: float | None) -> bool:
    """Gives whether each one that was run was caught."""
    began, well, done = time.monotonic(), True, 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree = Path(name)
        make_tree(tree)
        show_row("mutant", "rule that is taken out", "in", "seconds", "caught by")
        for mutant in mutants:
            if seconds is not None and done and time.monotonic() - began > seconds:
                break
            at = time.monotonic()
            outcome = run_mutant(tree, mutant)
            show(mutant.name, mutant.rule, mutant.path, outcome, time.monotonic() - at)
            well, done = well and bool(outcome.found), done + 1
    print(f"{done} of {len(mutants)} mutants in {time.monotonic() - began:.0f} s", flush=True)
    return well


def control() -> bool:
    """The tests of all mutants pass on an unchanged copy."""
    tests = list(dict.fromkeys(test for mutant in MUTANTS for test in mutant.tests))
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        make_tree(Path(name))
        at = time.monotonic()
        outcome = run_tests(Path(name), tests, limit_s=600)
    passed = not outcome.found and not outcome.trouble
    print(f"control: {'passed' if passed else outcome} in {time.monotonic() - at:.0f} s", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="no mutant begins after that; which ones are first is random")
    parser.add_argument("--only", help="the mutants whose names begin so")
    asked = parser.parse_args()
    mutants = [one for one in MUTANTS if asked.only is None or one.name.startswith(asked.only)]
    if not mutants:
        parser.error(f"no mutant is named {asked.only}; there are {', '.join(one.name for one in MUTANTS)}")
    if asked.seconds is not None:
        random.shuffle(mutants)
    elif asked.only is None and not control():
        return 1
    return 0 if run_all(mutants, asked.seconds) else 1


if __name__ == "__main__":
    assert ROOT.is_dir()
    sys.exit(main())
