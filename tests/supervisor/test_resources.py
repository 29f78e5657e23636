"""What does not fit is refused with its sum."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.config import Config, load
from shardserver.errors import ConfigError
from shardserver.supervisor import resources
from shardserver.supervisor.resources import (
    MIB,
    arena_bytes,
    check_descriptors,
    check_memory,
    lower_defaults,
    memory_parts,
    partition_limit,
)


def test_a_configuration_fits_into_its_sum_and_not_into_a_byte_less() -> None:
    total = sum(memory_parts(Config(), 1).values())
    arena = 256 + 2 + 16 + 512 + 2 * 64
    assert total == (2 * 56 + arena) * MIB + arena * MIB // 8
    assert check_memory(Config(), 1, total, "RAM") == total
    with pytest.raises(ConfigError) as raised:
        check_memory(Config(), 1, total - 1, "cgroup's memory limit")
    assert str(raised.value) == (
        "processes 112 + storage.tail_bytes or journal.files x journal.file_bytes 256 + "
        "2 x journal.max_write_bytes 2 + 16 x storage.read_ahead_bytes 16 + net.in_flight_bytes_per_shard 512 + "
        "2 x net.max_frame_bytes 128 + an eighth for rounding 115 = 1141 "
        "MiB do not fit into the cgroup's memory limit of 1140 MiB"
    )


def test_every_shard_costs_its_part_and_the_rings_to_all_others() -> None:
    def needed(shards: int) -> int:
        return check_memory(Config(), shards, 1 << 60, "RAM")

    of_one = needed(1) - 56 * MIB
    assert needed(4) == 56 * MIB + 4 * of_one + 4 * 3 * (256 + 64 * 1024)
    with pytest.raises(ConfigError, match=r"^4 shards: processes 280 \+ .* \+ rings 1 = "):
        check_memory(Config(), 4, 1 << 30, "RAM")


def test_the_arena_holds_its_sum_and_the_board_in_whole_pages() -> None:
    assert arena_bytes(Config()) == 4096 + (914 + 114) * MIB + MIB // 4
    router = msgspec.structs.replace(Config().router, arena_bytes=300 * MIB)
    config = msgspec.structs.replace(Config(), router=router)
    assert arena_bytes(config) == 4096 + 300 * MIB
    assert sum(memory_parts(config, 2).values()) == (3 * 56 + 2 * 300) * MIB + 2 * (256 + 64 * 1024)


def test_a_journal_larger_than_the_tail_fills_the_arena() -> None:
    journal = msgspec.structs.replace(Config().journal, files=32)
    larger = msgspec.structs.replace(Config(), journal=journal)
    assert arena_bytes(larger) - arena_bytes(Config()) == 256 * MIB * 9 // 8


def test_defaults_give_way_to_a_small_machine_and_set_values_do_not() -> None:
    config, sources, _ = load(None, {}, {"storage.tail_bytes": str(200 * MIB)})
    lowered, where = lower_defaults(config, sources, 1024 * MIB, 1)
    assert lowered.storage.tail_bytes == 200 * MIB and where["storage.tail_bytes"] == "flag"
    assert lowered.net.in_flight_bytes_per_shard == 128 * MIB
    assert where["net.in_flight_bytes_per_shard"] == "default, lowered to an eighth of the memory limit for all shards"
    assert lower_defaults(config, sources, 1 << 40, 1) == (config, sources)
    check_memory(lower_defaults(Config(), {}, 512 * MIB, 1)[0], 1, 512 * MIB, "RAM")


@pytest.mark.parametrize(
    ("limit_gib", "shards", "tail_mib", "in_flight_mib", "files"),
    [
        (24, 1, 256, 512, 8),
        (24, 2, 256, 512, 8),
        (24, 8, 256, 384, 8),
        (24, 64, 48, 48, 4),
        (2, 1, 256, 256, 8),
        (2, 2, 128, 128, 8),
    ],
)
def test_the_lowered_defaults_of_all_shards_fit(
    limit_gib: int, shards: int, tail_mib: int, in_flight_mib: int, files: int
) -> None:
    limit = limit_gib << 30
    config, _ = lower_defaults(Config(), {}, limit, shards)
    assert config.storage.tail_bytes == tail_mib * MIB
    assert config.net.in_flight_bytes_per_shard == in_flight_mib * MIB
    assert config.journal.files == files
    check_memory(config, shards, limit, "RAM")


@pytest.mark.parametrize(("shards", "floor_mib"), [(8, 32), (64, 8)])
def test_what_does_not_fit_with_its_lowered_defaults_is_refused(shards: int, floor_mib: int) -> None:
    config, _ = lower_defaults(Config(), {}, 2 << 30, shards)
    assert config.storage.tail_bytes == config.net.in_flight_bytes_per_shard == floor_mib * MIB
    with pytest.raises(ConfigError, match=rf"^{shards} shards: processes .* do not fit into the RAM of 2048 MiB$"):
        check_memory(config, shards, 2 << 30, "RAM")


@given(st.integers(256 * MIB, 1 << 42), st.integers(1, 64))
def test_more_memory_never_lowers_a_default(limit: int, shards: int) -> None:
    less, more = (lower_defaults(Config(), {}, one, shards)[0] for one in (limit, limit + limit // 7))
    assert Config().journal.files >= more.journal.files >= less.journal.files >= 4
    assert more.storage.tail_bytes >= less.storage.tail_bytes >= 8 * MIB
    assert more.net.in_flight_bytes_per_shard >= less.net.in_flight_bytes_per_shard >= 8 * MIB


def test_descriptors_that_do_not_fit_are_refused_with_their_keys() -> None:
    needed = check_descriptors(Config(), 1 << 20, 1)
    assert needed == 8192 + 512 + 8 + 1024 + 64
    assert check_descriptors(Config(), 1 << 20, 64) == needed + 5 * 63
    assert check_descriptors(Config(), needed, 1) == needed
    with pytest.raises(ConfigError, match=r"net.max_connections 8192 \+ storage.open_segments 512 .*= 9800 desc.*9799"):
        check_descriptors(Config(), needed - 1, 1)
    with pytest.raises(ConfigError, match=r"peers 15 .*= 9815 desc.*9814"):
        check_descriptors(Config(), needed + 14, 4)
    net = msgspec.structs.replace(Config().net, max_connections=8191)
    assert check_descriptors(msgspec.structs.replace(Config(), net=net), needed - 1, 1) == needed - 1


def test_an_unlimited_number_of_descriptors_fits_all() -> None:
    assert check_descriptors(Config(), resources.resource.RLIM_INFINITY, 1) == 9800


def test_partitions_are_as_many_as_descriptors_and_memory_allow() -> None:
    unlimited, needed = resources.resource.RLIM_INFINITY, sum(memory_parts(Config(), 1).values())
    # One descriptor for each and, with journal files of 16 MiB, one more for 256 of them.
    assert partition_limit(Config(), 8776 + 257 * 100, 1 << 60, 1) == 256 * 100
    assert partition_limit(Config(), 8776 + 5 * 3 + 257 * 100, 1 << 60, 4) == 4 * 256 * 100
    assert partition_limit(Config(), unlimited, needed + 4096 * 5000, 1) == 5000
    assert partition_limit(Config(), 8776 + 257 * 100, needed + 4096 * 5000, 1) == 5000


def test_a_server_that_just_fits_carries_some_partitions() -> None:
    needed = check_memory(Config(), 1, 1 << 60, "RAM")
    assert partition_limit(Config(), check_descriptors(Config(), 1 << 20, 1), needed, 1) == 1024


def test_the_limits_of_this_machine_are_read() -> None:
    limit, name = resources.memory_limit()
    assert limit > 64 * MIB and name in ("RAM", "cgroup's memory limit")
