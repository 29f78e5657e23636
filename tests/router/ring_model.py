"""A ring's ends compiled against a memory that may be as late as C11 allows, and every schedule of two of them.

`compile_ring` translates ring.pyx with one change: its loads, stores and fences call a `Memory` here. There a store is
seen at once, but a load may give any value that stood there since the last fence of its actor. That is what a store
that waits in a store buffer looks like to the load behind it, and it also covers machines where the store of an
exchange waits (AArch64). What an actor has read or written at a place never becomes older for it, and an acquire load
holds back the loads behind it. Slots are plain memory: the order of slots and tail is not looked at here.

`explore` runs both actors through every order of their operations and every value that a load may give. So a lost
doorbell is found by counting, not by luck.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
RING = Path("shardserver/router/ring.pyx")
BLOCK = ('cdef extern from *:\n    """', '    """\n')

MODEL = r"""
    #include <stdint.h>
    static uint64_t ring_model(const char* operation, const void* at, uint64_t value) {
        PyObject* given = PyObject_CallMethod(PySys_GetObject("ring_memory"), operation, "KK",
                                              (unsigned long long)(uintptr_t)at, (unsigned long long)value);
        if (given == NULL) { PyErr_Print(); Py_FatalError("the model of a ring's memory"); }
        uint64_t number = PyLong_AsUnsignedLongLong(given);
        Py_DECREF(given);
        return number;
    }
    static uint64_t ring_load_acquire(const void* at) { return ring_model("load_acquire", at, 0); }
    static void ring_store_release(void* at, uint64_t value) { ring_model("store", at, value); }
    static uint32_t ring_load_u32(const void* at) { return (uint32_t)ring_model("load", at, 0); }
    static uint32_t ring_exchange_u32(void* at, uint32_t value) { return (uint32_t)ring_model("exchange", at, value); }
    static void ring_full_fence(void) { ring_model("fence", 0, 0); }
"""


def compile_ring(directory: Path) -> ModuleType:
    """ring.pyx of this tree on the model; needs `sys.ring_memory` whenever one of its ends is used."""
    before, rest = (ROOT / RING).read_text().split(BLOCK[0])
    _, after = rest.split(BLOCK[1], 1)
    target = directory / RING
    target.parent.mkdir(parents=True)
    target.write_text(before + BLOCK[0] + MODEL + BLOCK[1] + after)
    target.with_suffix(".pxd").write_text((ROOT / RING).with_suffix(".pxd").read_text())
    for package in (target.parent, target.parent.parent):
        (package / "__init__.py").touch()
    built = target.with_suffix(".so")
    cython = [str(Path(sys.executable).parent / "cython"), "-3", str(RING)]
    gcc = ["gcc", "-shared", "-fPIC", "-O0", f"-I{sysconfig.get_path('include')}", str(RING.with_suffix(".c"))]
    for command in (cython, [*gcc, "-o", str(built)]):
        subprocess.run(command, cwd=directory, check=True)
    loader = ExtensionFileLoader("shardserver.router.ring", str(built))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


class Choices:
    """What was chosen of how many, in order; a run that begins with the same choices goes the same way."""

    def __init__(self, replay: list[int]) -> None:
        self.made: list[tuple[int, int]] = []
        self._replay = replay

    def choose(self, of: int) -> int:
        number = len(self.made)
        chosen = self._replay[number] if number < len(self._replay) else 0
        self.made.append((chosen, of))
        return chosen

    def following(self) -> list[int] | None:
        """The choices of the next run, depth first; None: that was the last one."""
        made = list(self.made)
        while made:
            chosen, of = made.pop()
            if chosen + 1 < of:
                return [one for one, _ in made] + [chosen + 1]
        return None


class Memory:
    """Each place's values with the moment at which they began; actors are threads, and one runs at a time."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._now = 0
        self._versions: dict[int, list[tuple[int, int]]] = {}
        self._fenced: dict[str, int] = {}
        self._seen: dict[tuple[str, int], int] = {}
        self._turns: dict[str, threading.Semaphore] = {}
        self._idle = threading.Semaphore(0)

    def run(self, actors: dict[str, Callable[[], None]]) -> None:
        """All actors to their ends, one operation at a time, in the order that was chosen."""
        self._turns = {name: threading.Semaphore(0) for name in actors}
        threads = {name: threading.Thread(target=self._act, args=(one,), name=name) for name, one in actors.items()}
        for one in threads.values():
            one.start()
            self._idle.acquire()  # it stands before its first operation
        while alive := [name for name in threads if name in self._turns]:
            self._turns[alive[self._choices.choose(len(alive)) if len(alive) > 1 else 0]].release()
            self._idle.acquire()
        for one in threads.values():
            one.join()

    def _act(self, actor: Callable[[], None]) -> None:
        try:
            actor()
        finally:
            self._turns.pop(threading.current_thread().name)
            self._idle.release()

    def _wait_for_turn(self) -> str:
        """The acting thread's name. Outside of `run` there is nobody to wait for."""
        name = threading.current_thread().name
        if name in self._turns:
            turn = self._turns[name]
            self._idle.release()
            turn.acquire()
        self._now += 1
        return name

    def _write(self, actor: str, at: int, value: int) -> None:
        self._versions.setdefault(at, [(0, 0)]).append((self._now, value))
        self._seen[actor, at] = self._now

    def _read(self, actor: str, at: int) -> tuple[int, int]:
        """Moment and value of one of those that may be seen. Newest first: the plain schedule is the first one."""
        versions = self._versions.setdefault(at, [(0, 0)])
        since = max(self._fenced.get(actor, 0), self._seen.get((actor, at), 0))
        first = max(number for number, (began, _) in enumerate(versions) if began <= since)
        chosen = versions[-1 - self._choices.choose(len(versions) - first)]
        self._seen[actor, at] = max(since, chosen[0])
        return chosen

    def load(self, at: int, _: int) -> int:
        return self._read(self._wait_for_turn(), at)[1]

    def load_acquire(self, at: int, _: int) -> int:
        actor = self._wait_for_turn()
        began, value = self._read(actor, at)
        self._fenced[actor] = max(self._fenced.get(actor, 0), began)
        return value

    def store(self, at: int, value: int) -> int:
        self._write(self._wait_for_turn(), at, value)
        return 0

    def exchange(self, at: int, value: int) -> int:
        """Reads the newest value, as an atomic change has to; no fence for other places."""
        actor = self._wait_for_turn()
        former = self._versions.setdefault(at, [(0, 0)])[-1][1]
        self._write(actor, at, value)
        return former

    def fence(self, _: int, __: int) -> int:
        actor = self._wait_for_turn()
        self._fenced[actor] = self._now
        return 0


def explore() -> Iterator[Memory]:
    """A memory for each schedule; the caller lets the same actors run on each."""
    replay: list[int] | None = []
    while replay is not None:
        choices = Choices(replay)
        yield Memory(choices)
        replay = choices.following()
