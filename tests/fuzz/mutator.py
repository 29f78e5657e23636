"""Mutations that know where a format has its lengths, counts and offsets; libFuzzer's own do the rest.

A wrong length is one value of four or eight bytes in a file of thousands, and compiled code shows no comparison that
leads to it. So half of the inputs get an edge value in such a field; the target then makes the checksums good again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.fuzz.seals import SEALED

# Place in the input and size, both in bytes.
Field = tuple[int, int]
Mutate = Callable[[bytes, int], bytes]


def edge_value(chance: random.Random, old: int, left_bytes: int, size: int) -> int:
    """Near the old one, near what is left of the input, or near a power of two; it fits in `size` bytes."""
    near = chance.choice((old, old, left_bytes, left_bytes, 2 * left_bytes, 0, 1 << chance.randrange(8 * size)))
    return (near + chance.choice((0, 0, 1, -1, 8, -8, 24, 32, 48, 256, 4096, -4096))) % (1 << 8 * size)


class FieldMutator:
    """What atheris calls for each new input. fields: empty when the format has none at known places."""

    def __init__(self, fields: Sequence[Field], mutate: Mutate, *, seals: bool) -> None:
        self._fields, self._mutate, self._seals = fields, mutate, seals

    def __call__(self, data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        fields = [(place, size) for place, size in self._fields if place + size <= len(data)]
        if not fields or chance.random() < 0.5:
            return self._mutate(data, max_bytes)
        raw = bytearray(data)
        for place, size in chance.choices(fields, k=chance.choice((1, 1, 2))):
            old = int.from_bytes(raw[place : place + size], "little")
            raw[place : place + size] = edge_value(chance, old, len(raw) - place, size).to_bytes(size, "little")
        if self._seals and chance.random() < 0.8:
            raw[0] |= SEALED
        return bytes(raw[:max_bytes])


def dictionary(words: Sequence[bytes]) -> str:
    """As libFuzzer's -dict reads it: one quoted word a line."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)
