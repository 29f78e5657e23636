"""The board: each field at its place, written by its owner alone. Format: docs/formats/ring.md, "Board"."""

import os

import pytest

from shardserver.memory.board import BOARD_BYTES, MAX_SHARDS, Board
from shardserver.memory.shared import make_memory, map_memory, map_read_only


def test_the_worked_example_of_the_format_page() -> None:
    memory = bytearray(BOARD_BYTES)
    board = Board(memoryview(memory))
    for _ in range(3):
        board.beat()
    board.connections, board.handed[1] = 5, 2
    golden = bytes.fromhex("0300000000000000") + bytes(56) + bytes.fromhex("0500000000000000") + bytes(440)
    golden += bytes(8) + bytes.fromhex("0200000000000000")
    assert bytes(memory) == golden.ljust(BOARD_BYTES, b"\0")


def test_each_field_has_its_own_place() -> None:
    memory = bytearray(BOARD_BYTES)
    board = Board(memoryview(memory))
    board.segments_bytes, board.oldest_timestamp = 7, 1 << 63
    for shard in range(MAX_SHARDS):
        board.handed[shard], board.received[shard] = 100 + shard, 200 + shard
    assert memory[72:80] == (7).to_bytes(8, "little") and memory[80:88] == (1 << 63).to_bytes(8, "little")
    assert [int.from_bytes(memory[at : at + 8], "little") for at in range(512, 1536, 8)] == [
        *range(100, 164),
        *range(200, 264),
    ]
    assert not any(memory[1536:]) and not any(memory[:72]) and not any(memory[88:512])
    assert (board.beats, board.connections, board.segments_bytes, board.oldest_timestamp) == (0, 0, 7, 1 << 63)


def test_a_reader_sees_what_the_owner_writes_and_cannot_write() -> None:
    descriptor = make_memory("test", 2 * BOARD_BYTES)
    with map_memory(descriptor) as ours, map_read_only(descriptor) as theirs:
        owner, reader = Board(ours), Board(theirs)
        owner.beat()
        owner.received[MAX_SHARDS - 1] = 9
        assert (reader.beats, reader.received[MAX_SHARDS - 1]) == (1, 9)
        with pytest.raises(TypeError):
            reader.beat()
        with pytest.raises(IndexError):
            _ = reader.handed[MAX_SHARDS]
        owner.release()
        reader.release()
    os.close(descriptor)
