"""make fuzz: plants that every reader's fuzzing must find, then the readers themselves, then a running server.

Two processes run at a time. A plant ends when it is found; what the plants leave of SECONDS, half at least, is shared
by the targets and the server. A crash leaves its input in build/fuzz/…/crash-…;
`python -m tests.fuzz.run_target NAME that-file` runs it again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.fuzz_run import covered_lines, fuzz_target
from tests.fuzz.live_server import fuzz_server
from tests.fuzz.plants import KINDS, ROOT
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.trees import BUILD, make_tree

# Of the time, what a running server gets.
SERVER_SHARE = 0.15
# A plant's limit; nearly all are found in a few seconds, most of which are the imports.
PLANT_S = 20.0
# Of the time, what the targets and the server have however long the plants took.
TARGETS_LEAST = 0.5
AT_A_TIME = 2


def install_fuzzer() -> bool:
    """atheris has wheels for Python 3.11 to 3.13 on Linux; it is no part of the normal test environment (34 MB)."""
    try:
        import atheris  # noqa: F401  # only whether it is there
    except ImportError:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *extras["fuzz"]]
        return subprocess.run(command, check=False).returncode == 0
    return True


def run_target(target: Target, seconds: float, work: Path) -> bool:
    """True: nothing broke."""
    tree, corpus = make_tree(target.name, ()), work / target.name
    # Much faster without AddressSanitizer: what was found then is where the watched extensions begin.
    times = {False: 1.0} if not target.compiled else {False: 0.6, True: 0.4}
    executions = crashes = 0
    for with_asan, share in times.items():
        tree = make_tree(target.name, target.compiled) if with_asan else tree
        run = fuzz_target(target, tree, corpus, seconds * share, with_asan=with_asan)
        executions, crashes = executions + run.executions, crashes + run.found
        if run.found:
            print(f"{target.name}: {run.reason}\n  input in {tree}", flush=True)
            break
    lines = covered_lines(target, ROOT, corpus)
    print(f"{target.name}: executions {executions}, lines {lines}, crashes {crashes}", flush=True)
    if not crashes:
        shutil.rmtree(tree)
    return not crashes


def run_plants(target: Target, work: Path) -> bool:
    """True: both were found."""
    good = True
    for kind, plants in KINDS.items():
        plant, name = plants[target.name], f"{target.name}-{kind.replace(' ', '-')}"
        tree = make_tree(name, (), plant)
        start = time.monotonic()
        run = fuzz_target(target, tree, work / name, PLANT_S, with_asan=plant.is_compiled)
        found = run.found and re.search(plant.shows, run.printed) is not None
        took = f"found after {run.executions} executions" if found else "NOT FOUND"
        print(
            f"{target.name}: planted {kind}: {took}, {time.monotonic() - start:.1f} s: {run.reason[:100]}", flush=True
        )
        shutil.rmtree(tree)
        good &= found
    return good


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--only", choices=[*TARGETS, "server"], default=None)
    parser.add_argument("--no-plants", action="store_true")
    parser.add_argument("--if-possible", action="store_true", help="no error where there is no atheris")
    arguments = parser.parse_args()
    if not install_fuzzer():
        print("fuzz needs atheris, which has no wheel for this Python")
        return 0 if arguments.if_possible else 2
    chosen = [one for name, one in TARGETS.items() if arguments.only in (None, name)]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(AT_A_TIME) as pool:
        work, start = Path(directory), time.monotonic()
        found = [] if arguments.no_plants else list(pool.map(lambda one: run_plants(one, work), chosen))
        left_s = max(arguments.seconds - (time.monotonic() - start), arguments.seconds * TARGETS_LEAST)
        share_s = AT_A_TIME * left_s * (1 - SERVER_SHARE) / max(1, len(chosen))
        found += pool.map(lambda one: run_target(one, share_s, work), chosen)
    if arguments.only in (None, "server"):
        found.append(fuzz_server(left_s * SERVER_SHARE))
    good = all(found)
    shutil.rmtree(BUILD, ignore_errors=True) if good else None
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
