"""Mutations that know a format: they stay in their fields, follow their seed, and reach a wrong length soon."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutator import FieldMutator, dictionary
from tests.fuzz.seals import SEALED
from tests.fuzz.tree_mutator import NO_TEXT, NO_UTF8, TreeMutator


def unchanged(data: bytes, max_bytes: int) -> bytes:
    """In place of libFuzzer's mutation."""
    return data


@given(st.binary(max_size=64), st.integers(0, 2**32), st.integers(0, 64))
def test_only_fields_that_lie_in_the_input_and_the_seal_are_changed(data: bytes, seed: int, max_bytes: int) -> None:
    mutate = FieldMutator([(9, 4), (60, 8)], [(9, 4)], unchanged, seals=True)
    made = mutate(data[:max_bytes], max_bytes, seed)
    assert len(made) == len(data[:max_bytes]) and made == mutate(data[:max_bytes], max_bytes, seed)
    same = set(range(1, len(made))) - set(range(9, 13)) - set(range(60, 68))
    assert all(made[place] == data[place] for place in same)


def test_a_length_just_past_the_end_is_tried_within_some_hundred_inputs_and_mostly_sealed() -> None:
    data = bytes(12) + (80).to_bytes(8, "little") + bytes(80)
    mutate = FieldMutator([(12, 8)], [], unchanged, seals=True)
    made = [one for one in (mutate(data, 200, seed) for seed in range(500)) if one[12:20] != data[12:20]]
    long = [one for one in made if len(data) - 12 < int.from_bytes(one[12:20], "little") < 4096]
    assert long and sum(one[0] & SEALED for one in made) > len(made) // 2


def test_lengths_that_lie_in_each_other_grow_together() -> None:
    data = bytes(1) + (60).to_bytes(4, "little") + (20).to_bytes(4, "little") + bytes(60)
    mutate = FieldMutator([(1, 4), (5, 4)], [(1, 4), (5, 4)], unchanged, seals=False)
    made = [mutate(data, 200, seed) for seed in range(500)]
    pairs = [[int.from_bytes(one[place : place + 4], "little") for place in (1, 5)] for one in made if one != data]
    assert any(outer == inner + 40 and inner > len(data) for outer, inner in pairs)


def test_a_format_without_fields_is_left_to_the_fuzzer() -> None:
    mutate = FieldMutator([], [], lambda data, max_bytes: b"of libFuzzer", seals=False)
    assert {mutate(b"x" * 20, 100, seed) for seed in range(50)} == {b"of libFuzzer"}


def test_a_dictionary_has_one_quoted_word_a_line() -> None:
    assert dictionary([b"a\x00", b'"']) == '"\\x61\\x00"\n"\\x22"\n'


@given(st.integers(0, 2**32))
def test_a_changed_tree_is_msgpack_again(seed: int) -> None:
    tree = {"events": [{"type": "partitions", "uids": [1, 2], "shards": [0, 1]}], "client": b"c"}
    made = TreeMutator(unchanged)(msgspec.msgpack.encode(tree), 1000, seed)
    assert isinstance(read(made), dict)


def read(made: bytes) -> Any:
    return msgspec.msgpack.decode(made.replace(NO_UTF8, NO_TEXT.encode()))


def test_text_that_is_not_utf_8_comes_within_some_hundred_inputs() -> None:
    raw = msgspec.msgpack.encode({"name": "n", "id": 1})
    made = [TreeMutator(unchanged)(raw, 1000, seed) for seed in range(300)]
    assert any(NO_UTF8 in one for one in made)


def test_two_arrays_of_one_length_differ_in_length_within_some_hundred_inputs() -> None:
    raw = msgspec.msgpack.encode({"uids": [1, 2], "shards": [0, 1]})
    made = [read(TreeMutator(unchanged)(raw, 1000, seed)) for seed in range(300)]
    lists = [one for one in made if isinstance(one.get("uids"), list) and isinstance(one.get("shards"), list)]
    assert any(len(one["uids"]) != len(one["shards"]) for one in lists)


@given(st.binary(max_size=40), st.integers(0, 2**32))
def test_what_is_no_tree_is_left_to_the_fuzzer(data: bytes, seed: int) -> None:
    assert len(TreeMutator(unchanged)(data, 40, seed)) <= 40
