"""The power goes under load: the filesystem is taken as it is below its mount, and what was acknowledged is counted.

Each round: load with the real SDK on an ext4 image, kill -9, wait for the locks that in-flight writes hold (nothing
else), copy the image file, mount the copy, recover from it, read everything back. The next round goes on with the copy.
The controls, `--durability memory` and an engine that never syncs, must lose something, or the test proves nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.crash.judge import judge, read_all
from tests.crash.load import PARTITIONS, Load, create
from tests.powercut.image import Image, ImageError
from tests.server_process import ServerProcess

LOCKED_SUFFIXES = (".journal", ".log", ".events")


@dataclass
class Outcome:
    cuts: int = 0
    discarded: int = 0
    seconds: float = 0.0
    journal_writes: int = 0
    flushes: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    disorder: int = 0
    remark: str = ""


class PowerCut:
    """Rounds on images in one directory."""

    def __init__(self, directory: Path, flags: list[str], module: str) -> None:
        self._directory, self._flags, self._module = directory, flags, module
        self._numbers = 0
        self._load = Load()
        self._image: Image
        self._server: ServerProcess

    def _new_image(self) -> Image:
        self._numbers += 1
        return Image(self._directory / f"{self._numbers}.img", self._directory / f"mount{self._numbers}")

    def run(self, seconds: float, least_cuts: int, *, until_lost: bool) -> Outcome:
        outcome, end = Outcome(), time.monotonic() + seconds
        self._image = self._new_image()
        self._image.create()
        self._image.mount()
        try:
            ready = self._start()
            asyncio.run(create(ready["tcp"]))
            while time.monotonic() < end or outcome.cuts < least_cuts:
                self._cut(ready, outcome)
                ready = self._check(outcome)
                if outcome.lost and (until_lost or not ready):
                    break
        finally:
            self._server.kill()
            self._image.unmount()
        return outcome

    def _start(self) -> dict:
        self._server = ServerProcess(self._image.directory / "data", *self._flags, module=self._module)
        self._server.start()
        return self._server.wait_ready()

    def _cut(self, ready: dict, outcome: Outcome) -> None:
        """Load, kill, and replace the image by its copy."""
        asyncio.run(self._load_and_kill(ready, outcome))
        wait_for_locks(self._image.directory / "data")
        after = self._new_image()
        whole = self._image.copy(after.path)
        self._server.wait()
        self._image.unmount()
        self._image.path.unlink()
        self._image = after
        outcome.cuts += whole
        outcome.discarded += not whole
        after.mount()

    async def _load_and_kill(self, ready: dict, outcome: Outcome) -> None:
        """Also counts the device's flushes beside the journal's writes while the load runs."""
        before, flushes, start = self._journal_writes(), self._image.flushes(), time.monotonic()
        owners = [0] * PARTITIONS  # of no interest: all shards die together
        producers = await self._load.connect(ready["tcp"], owners, len(ready["shards"]), hands_over=True)
        never = asyncio.Event()
        tasks = [asyncio.create_task(one.run(self._load, never)) for one in producers]
        await asyncio.sleep(random.uniform(0.3, 2.0))
        # Writes are read before flushes, so that a sync in between cannot make the flushes fewer than the writes.
        outcome.journal_writes += await asyncio.to_thread(self._journal_writes) - before
        outcome.flushes += self._image.flushes() - flushes
        outcome.seconds += time.monotonic() - start
        self._switch_off()
        for pid in (ready["supervisor_pid"], *(one["pid"] for one in ready["shards"])):
            with contextlib.suppress(ProcessLookupError):  # a shard without a disk may have ended by itself
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.02)  # acknowledgements that were on their way
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _switch_off(self) -> None:
        """Of a device that loses what it has not synced by itself: right before the kill."""

    def _journal_writes(self) -> int:
        shards = read_statistics(self._image.directory / "data")
        return sum(int(shard["log"]["journal"]["writes"]) for shard in shards)

    def _check(self, outcome: Outcome) -> dict:
        """Recover and compare; an empty answer: nothing that could be started, or read, was left."""
        outcome.acknowledged = self._load.acknowledged
        try:
            ready = self._start()
            found = asyncio.run(read_all(ready["tcp"]))
        except (AssertionError, RuntimeError) as error:
            outcome.lost, outcome.remark = outcome.acknowledged, str(error).strip().splitlines()[-1]
            return {}
        verdict = judge(self._load, found)
        outcome.lost, outcome.doubled, outcome.disorder = verdict.lost, verdict.doubled, verdict.disordered
        return ready


def read_statistics(data: Path) -> list[dict]:
    command = [sys.executable, "-m", "shardserver", "stats", "--json", "--data", str(data)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["shards"]


def wait_for_locks(data: Path) -> None:
    """Until no write of the dead process is in flight any more: each holds its file's lock (storage rule 15)."""
    for path in data.rglob("*"):
        if path.suffix in LOCKED_SUFFIXES:
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.close(descriptor)


def describe(outcome: Outcome) -> str:
    text = (
        f"cuts {outcome.cuts}, acknowledged {outcome.acknowledged}, lost {outcome.lost}, doubled {outcome.doubled}, "
        f"partitions out of order {outcome.disorder}; in {outcome.seconds:.1f} s of load: "
        f"journal writes {outcome.journal_writes}, device flushes {outcome.flushes}"
    )
    if outcome.discarded:
        text += f"; copies during which something was written {outcome.discarded}"
    return text + (f"; {outcome.remark}" if outcome.remark else "")


KINDS = {
    "fsync": ([], "shardserver"),
    "control memory": (["--durability", "memory"], "shardserver"),
    "control that never syncs": ([], "tests.powercut.unsafe_server"),
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--directory", default=None, help="where the images go; a filesystem with O_DIRECT")
    parser.add_argument("--if-possible", action="store_true", help="no error where loop mounts are not allowed")
    arguments = parser.parse_args()
    wrong = 0
    try:
        for kind, (flags, module) in KINDS.items():
            is_control = kind != "fsync"
            with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                cut = PowerCut(Path(directory), flags, module)
                seconds = arguments.seconds / (4 if is_control else 2)
                outcome = cut.run(seconds, 1, until_lost=is_control)
            print(f"{kind}: {describe(outcome)}", flush=True)
            broken = outcome.lost or outcome.doubled or outcome.disorder
            wrong += (not outcome.lost) if is_control else bool(broken) or not outcome.acknowledged
    except ImageError as error:
        print(f"powercut-test needs root and loop mounts: {error}")
        return 0 if arguments.if_possible else 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
