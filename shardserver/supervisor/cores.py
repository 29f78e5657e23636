"""Which cores the shards get, and which limit decided."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardserver.errors import ConfigError
from shardserver.memory.board import MAX_SHARDS
from shardserver.supervisor.cgroup import Cgroup

CPU_DIRECTORY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Machine:
    """usable: cores of the affinity mask. quota: of the cgroup. siblings: core -> all threads of its physical core."""

    usable: tuple[int, ...]
    quota: float | None = None
    siblings: Mapping[int, tuple[int, ...]] | None = None

    def ordered(self) -> list[int]:
        """One thread of each physical core first, then the hyper-threads beside them."""

        def rank(core: int) -> tuple[int, int]:
            threads = (self.siblings or {}).get(core, ())
            return sum(1 for other in threads if other < core and other in self.usable), core

        return sorted(self.usable, key=rank)


@dataclass(frozen=True, slots=True)
class CoreChoice:
    """cores: one for each shard; a core may be there more than once. decided_by: which limit."""

    cores: tuple[int, ...]
    decided_by: str


def this_machine() -> Machine:
    usable = tuple(sorted(os.sched_getaffinity(0)))
    return Machine(usable, Cgroup().cpu_quota(), {core: siblings_of(core) for core in usable})


def siblings_of(core: int, directory: Path = CPU_DIRECTORY) -> tuple[int, ...]:
    """All hardware threads of the core's physical core (sysfs); the core alone where the kernel does not say."""
    try:
        text = (directory / f"cpu{core}" / "topology" / "thread_siblings_list").read_text().strip()
        return tuple(number for first, last in parse_list(text) for number in range(first, last + 1))
    except (OSError, ValueError):
        return (core,)


def parse_list(text: str) -> list[tuple[int, int]]:
    """ "0-3,8" as [(0, 3), (8, 8)]. Raises ValueError when it is no such list."""
    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and first.isascii()) or (dash and not (last.isdecimal() and last.isascii())):
            raise ValueError(f"{part!r} is neither a core nor a range")
        found.append((int(first), int(last or first)))
    return found


def choose_cores(text: str, machine: Machine) -> CoreChoice:
    """The value of `server.cores` on this machine. Raises ConfigError with a sentence."""
    if text == "auto":
        return _default(machine)
    if text.isdecimal():
        count, usable = int(text), machine.ordered()
        if not 1 <= count <= MAX_SHARDS:
            raise ConfigError(f"server.cores = {text}: 1 to {MAX_SHARDS} shards")
        return CoreChoice(tuple(itertools.islice(itertools.cycle(usable), count)), "server.cores")
    return CoreChoice(tuple(_listed(text, machine)), "server.cores")


def choose_accepting(text: str, shards: int) -> frozenset[int]:
    """The value of `net.accept_shards`. Raises ConfigError with a sentence."""
    if not text:
        return frozenset(range(shards))
    try:
        ranges = parse_list(text)
    except ValueError as error:
        raise ConfigError(f"net.accept_shards = {text!r}: {error}; empty, or a list such as 0-3,8") from error
    for first, last in ranges:
        if not first <= last < shards:
            raise ConfigError(f"net.accept_shards = {text!r}: {first}-{last} are not all among shards 0-{shards - 1}")
    return frozenset(number for first, last in ranges for number in range(first, last + 1))


def _default(machine: Machine) -> CoreChoice:
    usable = machine.ordered()
    if min(len(usable), machine.quota if machine.quota is not None else len(usable)) > MAX_SHARDS:
        return CoreChoice(tuple(usable[:MAX_SHARDS]), f"at most {MAX_SHARDS} shards")
    if machine.quota is not None and machine.quota < len(usable):
        cores = usable[: max(1, int(machine.quota))]
        return CoreChoice(tuple(cores), f"CPU quota of {machine.quota:g} cores")
    return CoreChoice(tuple(usable), f"affinity of {len(usable)} cores")


def _listed(text: str, machine: Machine) -> list[int]:
    try:
        ranges = parse_list(text)
    except ValueError as error:
        raise ConfigError(f"server.cores = {text!r}: {error}; auto, a number, or a list such as 0-3,8") from error
    found: list[int] = []
    for first, last in ranges:
        if last < first:
            raise ConfigError(f"server.cores = {text!r}: the range {first}-{last} runs backwards")
        for core in range(first, last + 1):  # ends at the first core that is not there, however long the range
            if core not in machine.usable:
                usable = ",".join(map(str, machine.usable))
                raise ConfigError(f"server.cores = {text!r}: core {core} is not one this process may use ({usable})")
            if len(found) == MAX_SHARDS:
                raise ConfigError(f"server.cores = {text!r}: more than {MAX_SHARDS} cores")
            if core in found:
                raise ConfigError(f"server.cores = {text!r}: core {core} is named twice")
            found.append(core)
    return found
