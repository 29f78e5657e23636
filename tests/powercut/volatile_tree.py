"""Files and directories in memory that forget what was not synced: the harshest that POSIX allows.

A file's blocks are durable after its fsync, a name after the fsync of its directory. A cut keeps any subset of the
other blocks, some of them torn, either of two lengths, and any subset of the changes of names; a rename is one change.
"""

from __future__ import annotations

import errno
import itertools
import random
import stat
from dataclasses import dataclass, field

BLOCK_BYTES, SECTOR_BYTES = 4096, 512
KEPT, TORN = 0.45, 0.125
_numbers = itertools.count(2)


class File:
    """A regular file, or a socket's name."""

    def __init__(self, mode: int) -> None:
        self.number, self.mode = next(_numbers), mode
        self.current, self.durable = bytearray(), bytearray()
        self.unsynced: set[int] = set()

    def write(self, position: int, data: memoryview) -> None:
        self.resize(max(len(self.current), position + len(data)))
        self.current[position : position + len(data)] = data
        if len(data):
            self.unsynced.update(range(position // BLOCK_BYTES, (position + len(data) - 1) // BLOCK_BYTES + 1))

    def resize(self, length: int) -> None:
        if length > len(self.current):
            self.current.extend(bytes(length - len(self.current)))
        elif length < len(self.current):
            del self.current[length:]
            # What is grown again there is zeros, on the medium too.
            self.unsynced.update(range(length // BLOCK_BYTES, -(-len(self.durable) // BLOCK_BYTES)))

    def sync(self) -> None:
        self._set_durable_length(len(self.current))
        for block in self.unsynced:
            extent = slice(block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, len(self.current)))
            self.durable[extent] = self.current[extent]
        self.unsynced.clear()

    def _set_durable_length(self, length: int) -> None:
        del self.durable[length:]
        self.durable.extend(bytes(length - len(self.durable)))

    def cut(self, chance: random.Random) -> None:
        """Becomes what a power loss leaves of it."""
        if chance.random() < 0.5:
            self._set_durable_length(len(self.current))
        for block in self.unsynced:
            fate, start = chance.random(), block * BLOCK_BYTES
            for place in range(start, min(start + BLOCK_BYTES, len(self.durable), len(self.current)), SECTOR_BYTES):
                if fate < KEPT or (fate > 1 - TORN and chance.random() < 0.5):
                    end = min(place + SECTOR_BYTES, len(self.durable), len(self.current))
                    self.durable[place:end] = self.current[place:end]
        self.current = bytearray(self.durable)
        self.unsynced.clear()


class Directory:
    mode = stat.S_IFDIR | 0o755

    def __init__(self, number: int = 0) -> None:
        self.number = number or next(_numbers)
        self.current: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}


Node = File | Directory


@dataclass(eq=False)
class Change:
    """What one operation does to names: (directory, name, what stands there from now on)."""

    parts: list[tuple[Directory, str, Node | None]]

    def apply_to(self, *, durable: bool) -> None:
        for directory, name, node in self.parts:
            names = directory.durable if durable else directory.current
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node


@dataclass
class VolatileTree:
    """Names are changed by `change`. synced: how many syncs of files and directories there were."""

    root: Directory = field(default_factory=lambda: Directory(1))
    synced: int = 0
    _unsynced: list[Change] = field(default_factory=list)

    def change(self, *parts: tuple[Directory, str, Node | None]) -> None:
        change = Change(list(parts))
        change.apply_to(durable=False)
        self._unsynced.append(change)

    def find(self, directory: Directory, name: str) -> Node:
        """Raises OSError(ENOENT)."""
        found = directory.current.get(name)
        if found is None:
            raise OSError(errno.ENOENT, name)
        return found

    def rename(self, source: Directory, name: str, target: Directory, new_name: str) -> None:
        self.change((source, name, None), (target, new_name, self.find(source, name)))

    def sync(self, node: Node) -> None:
        """A directory: all changes of its names, in order, and what the same changes did elsewhere."""
        self.synced += 1
        if isinstance(node, File):
            node.sync()
            return
        left = []
        for change in self._unsynced:
            if any(directory is node for directory, _, _ in change.parts):
                change.apply_to(durable=True)
            else:
                left.append(change)
        self._unsynced = left

    def cut(self, chance: random.Random) -> None:
        """The power is gone."""
        for change in self._unsynced:
            if chance.random() < 0.5:
                change.apply_to(durable=True)
        self._unsynced.clear()
        self._settle(self.root, chance, set())

    def _settle(self, directory: Directory, chance: random.Random, seen: set[int]) -> None:
        directory.current = dict(directory.durable)
        for name in sorted(directory.current):
            node = directory.current[name]
            if node.number in seen:
                continue
            seen.add(node.number)
            if isinstance(node, Directory):
                self._settle(node, chance, seen)
            else:
                node.cut(chance)
