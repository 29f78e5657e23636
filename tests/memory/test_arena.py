"""The arena: one suite for the compiled module and for its plain-Python specification, and the two compared."""

from __future__ import annotations

import gc
import mmap
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.errors import ArenaFullError, BackpressureError, CorruptionError
from shardserver.memory import arena as compiled
from shardserver.memory import arena_python as plain
from shardserver.memory.arena_python import UNIT_BYTES, units_of
from shardserver.memory.heap import heap_arena
from shardserver.memory.shared import make_memory, map_memory, map_read_only, read_only_descriptor

PAGE = 4096
IMPLEMENTATIONS = [pytest.param(compiled, id="compiled"), pytest.param(plain, id="plain")]


@pytest.fixture(params=IMPLEMENTATIONS)
def arenas(request: pytest.FixtureRequest) -> Any:
    return request.param


def made(arenas: Any, pages: int = 17, first: int = PAGE) -> Any:
    return arenas.Arena(memoryview(bytearray(pages * PAGE)), first)


def view_of(block: Any) -> memoryview:
    return memoryview(block).cast("B")


def taken(size: int) -> int:
    return units_of(size) * UNIT_BYTES


# Sizes


@pytest.mark.parametrize(
    "size, expected",
    [
        (1, 256),
        (256, 256),
        (257, 512),
        (2048, 2048),
        (2049, 2304),
        (4095, 4096),
        (4097, 4608),
        (1 << 20, 1 << 20),
        ((1 << 20) + 1, (1 << 20) + (1 << 17)),
        ((2 << 20) - 1, 2 << 20),
        (5 << 20, 5 << 20),
    ],
)
def test_a_block_takes_its_size_rounded_up_to_an_eighth_of_its_power_of_two(
    arenas: Any, size: int, expected: int
) -> None:
    arena = made(arenas, 3000)
    block = arena.allocate(size)
    assert (len(block), len(view_of(block)), arena.used_bytes) == (size, size, expected)


@given(st.integers(1, 1 << 36))
def test_no_more_than_an_eighth_is_lost_and_never_more_than_a_unit_of_small_blocks(size: int) -> None:
    assert size <= taken(size) < size + max(UNIT_BYTES, size / 8)


@pytest.mark.parametrize("size", [0, -1, -(1 << 40)])
def test_a_block_of_nothing_is_refused(arenas: Any, size: int) -> None:
    with pytest.raises(ValueError, match="a block of"):
        made(arenas).allocate(size)


@pytest.mark.parametrize("size", [16 * PAGE + 1, 1 << 30, 1 << 62])
def test_a_block_larger_than_the_arena_is_refused_as_full(arenas: Any, size: int) -> None:
    with pytest.raises(ArenaFullError):
        made(arenas).allocate(size)
    assert issubclass(ArenaFullError, BackpressureError)


@pytest.mark.parametrize(
    "size, first", [(0, 0), (PAGE, PAGE), (PAGE + 1, 0), (4 * PAGE, 256), (PAGE, 2 * PAGE), (4 * PAGE, -PAGE)]
)
def test_an_arena_is_whole_pages_beside_its_board(size: int, first: int) -> None:
    memory = memoryview(bytearray(size))
    with pytest.raises(ValueError, match="an arena of"):
        plain.Arena(memory, first)
    with pytest.raises((ValueError, OverflowError)):
        compiled.Arena(memory, first)


def test_an_arena_in_read_only_memory_is_refused() -> None:
    with pytest.raises(BufferError):
        compiled.Arena(memoryview(bytes(4 * PAGE)))


# Blocks


def test_a_block_is_where_it_says(arenas: Any) -> None:
    memory = bytearray(17 * PAGE)
    arena = arenas.Arena(memoryview(memory))
    block = arena.copy(b"x" * 300)
    assert block.position >= PAGE
    assert memory[block.position : block.position + 301] == b"x" * 300 + b"\0"
    memory[block.position] = ord("y")
    assert bytes(view_of(block)[:2]) == b"yx"


@pytest.mark.parametrize("size", [PAGE, PAGE + 1, 5 * PAGE, 3 * PAGE - 1])
def test_blocks_from_a_page_on_begin_at_a_page(arenas: Any, size: int) -> None:
    arena = made(arenas, 100)
    blocks = [arena.allocate(one) for one in (1, size, 700, size, 256, size)]
    assert [block.position % PAGE for block in blocks[1::2]] == [0, 0, 0]


def test_a_view_keeps_the_memory_of_its_block(arenas: Any) -> None:
    arena = made(arenas)
    view = view_of(arena.copy(b"kept"))[1:3]
    assert arena.used_bytes == 256
    assert arena.allocate(256).position != arena.position_of(view)
    view.release()
    assert arena.used_bytes == 0


@pytest.mark.parametrize("size", [3 * PAGE, 3 * PAGE - 1, 32 * 1024 + 1, 40_000])
def test_a_padded_block_is_its_bytes_and_zeros_up_to_a_page(arenas: Any, size: int) -> None:
    arena = arenas.Arena(mmap.mmap(-1, 65 * PAGE))
    view_of(arena.allocate(64 * PAGE))[:] = b"\xee" * (64 * PAGE)
    block = arena.copy(b"x" * size)
    whole = arenas.padded(block)
    assert bytes(whole) == b"x" * size + bytes(-size % PAGE) and whole.readonly
    assert arena.position_of(whole) == block.position
    del block
    assert arena.used_bytes == taken(size)  # the view holds it
    del whole
    assert arena.used_bytes == 0


def test_what_is_no_block_or_has_no_room_for_padding_is_not_padded(arenas: Any) -> None:
    arena = made(arenas)
    assert arenas.padded(bytearray(PAGE)) is None and arenas.padded(memoryview(arena.allocate(PAGE))) is None
    assert arenas.padded(arena.allocate(PAGE + 1)) is None
    small = [arena.allocate(256), arena.allocate(256)]
    assert arenas.padded(small[1]) is None  # it does not begin at a page


@given(st.integers(32 * 1024, 1 << 20))
def test_from_32_kib_on_each_block_has_room_for_its_padding(size: int) -> None:
    assert taken(size) % PAGE == 0


def test_a_dropped_block_is_used_again(arenas: Any) -> None:
    arena = made(arenas)
    first = arena.allocate(5000)
    position = first.position
    del first
    assert arena.allocate(5000).position == position


def test_blocks_hold_their_arena(arenas: Any) -> None:
    memory = mmap.mmap(-1, 17 * PAGE)
    block = arenas.Arena(memory).copy(b"alone")
    gc.collect()
    with pytest.raises(BufferError):
        memory.close()
    assert bytes(view_of(block)) == b"alone"
    del block
    gc.collect()
    memory.close()


def test_a_copy_takes_any_contiguous_buffer(arenas: Any) -> None:
    arena = made(arenas)
    words = memoryview(bytes(range(16))).cast("I")
    for data in (b"ab", bytearray(b"ab"), memoryview(b"xaby")[1:3], words, words.cast("B").cast("B", (4, 4))):
        assert bytes(view_of(arena.copy(data))) == bytes(data)
    assert bytes(view_of(arena.copy(arena.copy(b"twice")))) == b"twice"


def test_a_copy_that_fails_takes_nothing(arenas: Any) -> None:
    arena = made(arenas)
    for data, error in ((b"", ValueError), (bytes(17 * PAGE), ArenaFullError), (3, TypeError)):
        with pytest.raises(error):
            arena.copy(data)
    assert arena.used_bytes == 0


def test_a_buffer_with_gaps_has_no_position_and_no_copy(arenas: Any) -> None:
    arena = made(arenas)
    gaps = view_of(arena.allocate(512))[::2]
    for use in (arena.position_of, arena.copy):
        with pytest.raises(BufferError):
            use(gaps)


def test_the_position_of_a_slice_is_found_and_foreign_memory_is_elsewhere(arenas: Any) -> None:
    memory = bytearray(17 * PAGE)
    arena, other = arenas.Arena(memoryview(memory)), made(arenas)
    block = arena.allocate(5000)
    view = view_of(block)
    assert arena.position_of(block) == block.position
    assert arena.position_of(view[700:900].toreadonly()) == block.position + 700
    assert arena.position_of(memoryview(memory)) == 0
    assert arena.position_of(memoryview(memory)[-1:]) == 17 * PAGE - 1
    for foreign in (b"abc", bytearray(3), view_of(other.allocate(256)), bytes(32 * PAGE)):
        assert arena.position_of(foreign) == -1


def test_statistics_count_what_is_used(arenas: Any) -> None:
    arena = made(arenas)
    assert arena.statistics() == plain.ArenaStatistics(16 * PAGE, 0, 0, 16 * PAGE)
    held = [arena.allocate(100), arena.allocate(3 * PAGE)]
    assert arena.statistics() == plain.ArenaStatistics(16 * PAGE, 256 + 3 * PAGE, len(held), 8 * PAGE)


def test_blocks_can_only_be_had_from_an_arena() -> None:
    with pytest.raises(TypeError):
        compiled.Block()
    assert bytes(compiled.Block.__new__(compiled.Block)) == b""


# Models

SIZES = st.one_of(st.integers(1, 600), st.integers(1, 3 * PAGE), st.integers(1, 20 * PAGE))
STEPS = st.lists(st.one_of(SIZES, st.integers(-40, -1)), max_size=60)


@given(STEPS, st.integers(2, 40), st.integers(0, 1))
def test_blocks_never_overlap_and_all_of_them_returned_make_it_whole_again(
    steps: list[int], pages: int, board: int
) -> None:
    """Both implementations choose the same positions and refuse the same requests."""
    runs = []
    for arenas in (compiled, plain):
        arena = made(arenas, pages, board * PAGE)
        whole = arena.statistics()
        runs.append(follow_model(arena, steps, board * PAGE, pages * PAGE))
        assert arena.statistics() == whole
    assert runs[0] == runs[1]


def give_back(view: memoryview, mark: int) -> None:
    assert bytes(view) == bytes([mark]) * len(view)  # nobody else wrote here


def follow_model(arena: Any, steps: list[int], first: int, end: int) -> list[int]:
    """A size allocates, a negative number returns one of the blocks held. Gives the positions, -1: full."""
    held: list[tuple[Any, int]] = []
    positions = []
    for mark, step in enumerate(steps):
        if step < 0:
            if held:
                give_back(*held.pop(step % len(held)))
            continue
        try:
            block = arena.allocate(step)
        except ArenaFullError:
            positions.append(-1)
            assert arena.statistics().largest_free_bytes < 2 * step + UNIT_BYTES
            continue
        positions.append(block.position)
        assert first <= block.position and block.position + step <= end
        assert block.position % (PAGE if step >= PAGE else UNIT_BYTES) == 0
        view_of(block)[:] = bytes([mark]) * step
        held.append((view_of(block), mark))
        del block
        assert arena.used_bytes == sum(taken(len(view)) for view, _ in held)
    return positions


@given(st.integers(1, 1 << 16), st.lists(st.integers(1, 300), max_size=30))
def test_the_free_pieces_are_always_joined_as_far_as_they_go(units: int, takes: list[int]) -> None:
    buddies = plain.Buddies(units)
    whole = [set(one) for one in buddies.free]
    held = [(buddies.take(one), one) for one in takes]
    for unit, count in held:
        if unit >= 0:
            buddies.give_back(unit, count)
    assert buddies.free == whole
    assert sum(len(one) << order for order, one in enumerate(buddies.free)) == units


def test_every_unit_of_an_arena_can_be_used_and_comes_back(arenas: Any) -> None:
    arena = made(arenas, 70)
    whole = arena.statistics()
    blocks = [arena.allocate(200) for _ in range(69 * 16)]
    assert len({block.position for block in blocks}) == 69 * 16
    with pytest.raises(ArenaFullError):
        arena.allocate(1)
    del blocks[::2]
    with pytest.raises(ArenaFullError):
        arena.allocate(257)
    blocks.clear()
    assert arena.statistics() == whole


def test_an_arena_of_64_gib_costs_nothing_before_it_is_used() -> None:
    def resident_kib() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    size = 64 << 30
    descriptor = make_memory("test", size)
    memory = map_memory(descriptor)
    before = resident_kib()
    arena = compiled.Arena(memory)
    blocks = [arena.allocate(one) for one in (300, 64 << 20, 1 << 34)]
    assert arena.statistics().largest_free_bytes == 1 << 35
    assert blocks[2].position % PAGE == 0
    assert resident_kib() - before < 16384
    with pytest.raises(ValueError, match="an arena of"):
        plain.check_arena(size + PAGE, 0)


def test_a_heap_arena_has_the_room_that_was_asked_for() -> None:
    arena = heap_arena(1 << 20)
    assert len(arena.allocate(1 << 20)) == 1 << 20
    assert heap_arena(5000).bytes == 2 * PAGE


# What is lent


class Loan:
    """Says when it dies."""

    def __init__(self, ends: list[str]) -> None:
        self._ends = ends

    def __del__(self) -> None:
        self._ends.append("returned")


def test_a_loan_ends_with_the_last_view(arenas: ModuleType) -> None:
    ends: list[str] = []
    memory = memoryview(bytearray(b"0123456789"))
    view = memoryview(arenas.LentBuffer(memory, 2, 5, Loan(ends)))
    last = view[1:3]
    view.release()
    assert (bytes(last), ends) == (b"34", [])
    last.release()
    assert ends == ["returned"]


def test_a_peers_arena_is_read_through_a_read_only_map(arenas: ModuleType) -> None:
    descriptor = make_memory("test", 17 * PAGE)
    block = arenas.Arena(map_memory(descriptor)).copy(b"payload")
    peers = map_read_only(read_only_descriptor(descriptor))
    view = memoryview(arenas.LentBuffer(peers, block.position, len(block), None))
    assert view.readonly and bytes(view) == b"payload"
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(BufferError):
        peers.close()


@pytest.mark.parametrize("position, length", [(0, 11), (11, 0), (-1, 2), (3, -1), (10, 1), (1 << 70, 1), (1, 1 << 64)])
def test_a_slice_outside_of_the_peers_arena_is_corruption(arenas: ModuleType, position: int, length: int) -> None:
    ends: list[str] = []
    with pytest.raises(CorruptionError):
        arenas.LentBuffer(memoryview(bytes(10)), position, length, Loan(ends))
    gc.collect()
    assert ends == ["returned"]


def test_an_empty_slice_at_the_end_is_lent(arenas: ModuleType) -> None:
    assert bytes(arenas.LentBuffer(memoryview(bytes(10)), 10, 0, None)) == b""
