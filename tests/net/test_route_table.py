"""Routes by key: a dict from bytes to routes says what is right."""

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from shardserver.net.route_table import RouteTable


class Kept:
    pass


# Those of up to 40 bytes stand in their place, longer ones elsewhere.
KEYS = st.binary(max_size=12) | st.integers(38, 43).map(bytes)
# A key and a route for it; no route: look it up; no key: forget all.
STEPS = st.lists(st.tuples(st.none() | KEYS, st.booleans()), max_size=300)


@given(STEPS)
def test_it_finds_what_a_dict_finds(steps: list[tuple[bytes | None, bool]]) -> None:
    table: RouteTable[Kept] = RouteTable()
    known: dict[bytes, Kept] = {}
    for key, is_set in steps:
        if key is None:
            table.clear()
            known.clear()
        elif is_set:
            table[key] = known[key] = Kept()
        else:
            assert table.get(key) is known.get(key)
        assert len(table) == len(known)
    for key, route in known.items():
        assert table.get(key) is route


def test_it_grows_and_finds_all() -> None:
    table: RouteTable[int] = RouteTable()
    for number in range(5000):
        table[number.to_bytes(2, "little")] = number
    assert [table.get(number.to_bytes(2, "little")) for number in range(5000)] == list(range(5000))
    assert table.get(b"\xff\xff") is None


def test_what_is_replaced_or_forgotten_is_let_go() -> None:
    table: RouteTable[Kept] = RouteTable()
    first, second = Kept(), Kept()
    dying = [weakref.ref(first), weakref.ref(second)]
    table[b"key"] = first
    table[b"key"] = second
    del first
    gc.collect()
    assert dying[0]() is None
    table.clear()
    del second
    gc.collect()
    assert dying[1]() is None
