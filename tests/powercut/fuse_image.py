"""A volatile file system in a process of its own, with a switch for its power."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.powercut.fuse import FuseMount, MountError
from tests.powercut.volatile_tree import VolatileTree

ANSWER_WAIT_S = 60.0


def serve(directory: Path, pipe: Connection) -> None:
    """The process: commands are (name, argument), each is answered; `end` is the last."""
    tree = VolatileTree()
    mount: FuseMount | None = None
    thread = threading.Thread()
    while True:
        command, argument = pipe.recv()
        answer: Any = None
        if command == "mount":
            try:
                mount = FuseMount(tree, directory)
                thread = threading.Thread(target=mount.serve, daemon=True)
                thread.start()
            except MountError as error:
                answer = str(error)
        elif command == "cut" and mount is not None:
            mount.cut(argument)
        elif command == "hold" and mount is not None:
            mount.holds_next = True
        elif command == "held" and mount is not None:
            answer = bool(mount.held)
        elif command == "land" and mount is not None:
            mount.land()
        elif command == "syncs":
            answer = tree.synced
        elif command in ("unmount", "end") and mount is not None:
            mount.unmount()
            thread.join(ANSWER_WAIT_S)
            mount = None
        pipe.send(answer)
        if command == "end":
            return


class FuseImage:
    """As Image, as far as the power-cut test asks. `cut` instead of a copy."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(directory, theirs), daemon=True)

    def _ask(self, command: str, argument: Any = None) -> Any:
        self._pipe.send((command, argument))
        assert self._pipe.poll(ANSWER_WAIT_S), f"the file system does not answer {command}"
        return self._pipe.recv()

    def create(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process.start()

    def mount(self) -> None:
        """Raises MountError."""
        refused = self._ask("mount")
        if refused:
            raise MountError(refused)

    def flushes(self) -> int:
        """Syncs of files and directories."""
        return int(self._ask("syncs"))

    def cut(self, seed: int) -> None:
        """The power goes: at once, whoever is writing."""
        self._ask("cut", seed)

    def hold_next_write(self) -> None:
        """The next direct one stays unanswered until `land`."""
        self._ask("hold")

    def holds_a_write(self) -> bool:
        return bool(self._ask("held"))

    def land(self) -> None:
        """The one that was held back, if any, whether or not its process still lives."""
        self._ask("land")

    def remount(self) -> None:
        """When no process has a file open there: what the cut has left."""
        self._ask("unmount")
        self.mount()

    def unmount(self) -> None:
        if self._process.is_alive():
            self._ask("end")
            self._process.join(ANSWER_WAIT_S)
