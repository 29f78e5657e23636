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


def read_field(raw: bytearray, field: Field) -> int:
    return int.from_bytes(raw[field[0] : sum(field)], "little")


def write_field(raw: bytearray, field: Field, value: int) -> None:
    raw[field[0] : sum(field)] = (value % (1 << 8 * field[1])).to_bytes(field[1], "little")


def edges(chance: random.Random, raw: bytearray, fields: Sequence[Field]) -> None:
    """One or two of the fields."""
    for field in chance.choices(fields, k=chance.choice((1, 1, 2))):
        write_field(raw, field, edge_value(chance, read_field(raw, field), len(raw) - field[0], field[1]))


def stretch(chance: random.Random, raw: bytearray, nested: Sequence[Field]) -> None:
    """All lengths of things that lie in each other by the same number: then each is wrong for the input only."""
    more = edge_value(chance, 0, len(raw) - nested[0][0], 4)
    for field in nested:
        write_field(raw, field, read_field(raw, field) + more)


class FieldMutator:
    """What atheris calls for each new input. fields: empty when the format has none at known places.

    nested: lengths, each of which counts what the next one counts too. seeds: where one in three changes begins, as
    libFuzzer's favourites are soon inputs that it has cut and shifted, whose fields are elsewhere.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        nested: Sequence[Field],
        mutate: Mutate,
        *,
        seals: bool,
        seeds: Sequence[bytes] = (),
    ) -> None:
        self._fields, self._nested, self._mutate, self._seals, self._seeds = fields, nested, mutate, seals, seeds

    def __call__(self, data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if self._fields and chance.random() < 0.5:
            return self.changed(chance, data)[:max_bytes]
        return self._mutate(data, max_bytes)

    def changed(self, chance: random.Random, data: bytes) -> bytes:
        """Of a target with fields: data, or a seed, with other lengths."""
        if self._seeds and chance.random() < 0.33:
            data = chance.choice(self._seeds)
        fields, nested = ([one for one in some if sum(one) <= len(data)] for some in (self._fields, self._nested))
        if not fields:
            return data
        raw = bytearray(data)
        if nested and chance.random() < 0.25:
            stretch(chance, raw, nested)
        else:
            edges(chance, raw, fields)
        if self._seals and chance.random() < 0.8:
            raw[0] |= SEALED
        return bytes(raw)


def dictionary(words: Sequence[bytes]) -> str:
    """As libFuzzer's -dict reads it: one quoted word a line."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)
