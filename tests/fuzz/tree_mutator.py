"""Mutations of msgpack: a value of the tree is dropped, doubled or replaced, and the lengths around it stay right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.fuzz.mutator import Mutate

# Stands for text that is not UTF-8, which no encoder makes.
NO_TEXT, NO_UTF8 = "\ufdd0", b"\xff\xff\xff"
LEAVES = (0, 1, -1, 255, 1 << 31, 1 << 63, -(1 << 63), "", "a", NO_TEXT, b"", b"\xff", True, None, 0.5, [], {})


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each value as (the list or dict that holds it, its index or key)."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        for key in keys:
            yield one, key
            waiting.append(one[key])


def change(chance: random.Random, holder: Any, key: Any) -> None:
    match chance.randrange(3):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case _:
            old = holder[key]
            near = [old + 1, old - 1, abs(old) // 2] if type(old) is int else []
            holder[key] = chance.choice((*LEAVES, *near))


class TreeMutator:
    """What atheris calls for each new input; what is no msgpack, or too deep, is left to libFuzzer."""

    def __init__(self, mutate: Mutate) -> None:
        self._mutate = mutate

    def __call__(self, data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        try:
            tree = None if chance.random() < 0.5 else msgspec.msgpack.decode(data)
            found = list(places(tree))
            if not found:
                return self._mutate(data, max_bytes)
            change(chance, *chance.choice(found))
            return msgspec.msgpack.encode(tree).replace(NO_TEXT.encode(), NO_UTF8)[:max_bytes]
        except (ValueError, TypeError, OverflowError, RecursionError):
            return self._mutate(data, max_bytes)
