"""The second form of the power-cut test: the server on a file system that forgets, see volatile_tree.py.

Each round: load with the real SDK, the power goes in the middle of it, kill -9, and what any such cut may leave is
mounted again: a random subset of the blocks and of the changes of names that no sync had covered. Where the first form
has what ext4 had sent to its device, this one has the least that a file system owes. The controls must lose something.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.load import create
from tests.powercut.fuse import MountError
from tests.powercut.fuse_image import FuseImage
from tests.powercut.powercut_test import KINDS, Outcome, PowerCut, describe

# A small ring turns often: flushes, reuse and rolls happen in each life.
CONFIG = "[journal]\nfile_bytes = 2097152\nfiles = 4\n[storage]\nlow_watermark_bytes = 0\n"


class FuseCut(PowerCut):
    """Rounds on one volatile file system."""

    _image: FuseImage  # type: ignore[assignment]  # as far as PowerCut asks it

    def run(self, seconds: float, least_cuts: int, *, until_lost: bool) -> Outcome:
        """Raises MountError."""
        outcome, end = Outcome(), time.monotonic() + seconds
        config = self._directory / "server.toml"
        config.write_text(CONFIG)
        self._flags = ["--config", str(config), *self._flags]
        self._image = FuseImage(self._directory / "mounted")
        self._image.create()
        try:
            self._image.mount()
            ready = self._start()
            asyncio.run(create(ready["tcp"]))
            while time.monotonic() < end or outcome.cuts < least_cuts:
                self._cut(ready, outcome)
                ready = self._check(outcome)
                if outcome.lost and (until_lost or not ready):
                    break
        finally:
            if hasattr(self, "_server"):
                self._server.kill()
            self._image.unmount()
        return outcome

    def _switch_off(self) -> None:
        self._image.cut(random.getrandbits(32))

    def _cut(self, ready: dict, outcome: Outcome) -> None:
        asyncio.run(self._load_and_kill(ready, outcome))
        self._server.wait()
        self._image.remount()
        outcome.cuts += 1


def run_fuse(seconds: float, seed: int) -> int:
    """Prints a line for each kind. Gives how many were not as they must be. Raises MountError."""
    wrong = 0
    for kind, (flags, module) in KINDS.items():
        is_control = kind != "fsync"
        random.seed(seed)
        with tempfile.TemporaryDirectory() as directory:
            cut = FuseCut(Path(directory), flags, module)
            outcome = cut.run(seconds / (4 if is_control else 2), 1, until_lost=is_control)
        print(f"FUSE, {kind}: seed {seed}, {describe(outcome)}", flush=True)
        broken = outcome.lost or outcome.doubled or outcome.disorder
        wrong += (not outcome.lost) if is_control else bool(broken) or not outcome.acknowledged
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--if-possible", action="store_true", help="no error where FUSE mounts are not allowed")
    arguments = parser.parse_args()
    try:
        return 1 if run_fuse(arguments.seconds, arguments.seed or int(time.time())) else 0
    except MountError as error:
        print(f"the second form of powercut-test needs root and /dev/fuse: {error}")
        return 0 if arguments.if_possible else 2


if __name__ == "__main__":
    sys.exit(main())
