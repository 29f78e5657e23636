"""What does not fit is refused with its sum."""

import msgspec
import pytest

from shardserver.config import Config, load
from shardserver.errors import ConfigError
from shardserver.supervisor import resources
from shardserver.supervisor.resources import MIB, check_descriptors, check_memory, lower_defaults, memory_parts


def test_a_configuration_fits_into_its_sum_and_not_into_a_byte_less() -> None:
    total = sum(memory_parts(Config(), 1).values())
    assert total == (2 * 56 + 8 * 16 + 256 + 16 + 512 + 2 * 64) * MIB
    assert check_memory(Config(), 1, total, "RAM") == total
    with pytest.raises(ConfigError) as raised:
        check_memory(Config(), 1, total - 1, "cgroup's memory limit")
    assert str(raised.value) == (
        "processes 112 + journal.files x journal.file_bytes 128 + storage.tail_bytes 256 + "
        "16 x storage.read_ahead_bytes 16 + net.in_flight_bytes_per_shard 512 + 2 x net.max_frame_bytes 128 = 1152 MiB "
        "do not fit into the cgroup's memory limit of 1151 MiB"
    )


def test_every_shard_costs_its_part() -> None:
    assert check_memory(Config(), 2, 1 << 40, "RAM") == 2 * check_memory(Config(), 1, 1 << 40, "RAM") - 56 * MIB


def test_defaults_give_way_to_a_small_machine_and_set_values_do_not() -> None:
    config, sources, _ = load(None, {}, {"storage.tail_bytes": str(200 * MIB)})
    lowered, where = lower_defaults(config, sources, 1024 * MIB)
    assert lowered.storage.tail_bytes == 200 * MIB and where["storage.tail_bytes"] == "flag"
    assert lowered.net.in_flight_bytes_per_shard == 128 * MIB
    assert where["net.in_flight_bytes_per_shard"] == "default, lowered to an eighth of the memory limit"
    assert lower_defaults(config, sources, 1 << 40) == (config, sources)
    check_memory(lower_defaults(Config(), {}, 512 * MIB)[0], 1, 512 * MIB, "RAM")


def test_descriptors_that_do_not_fit_are_refused_with_their_keys() -> None:
    needed = check_descriptors(Config(), 1 << 20)
    assert needed == 8192 + 512 + 8 + 1024 + 64
    assert check_descriptors(Config(), needed) == needed
    with pytest.raises(ConfigError, match=r"net.max_connections 8192 \+ storage.open_segments 512 .*= 9800 desc.*9799"):
        check_descriptors(Config(), needed - 1)
    net = msgspec.structs.replace(Config().net, max_connections=8191)
    assert check_descriptors(msgspec.structs.replace(Config(), net=net), needed - 1) == needed - 1


def test_an_unlimited_number_of_descriptors_fits_all() -> None:
    assert check_descriptors(Config(), resources.resource.RLIM_INFINITY) == 9800


def test_the_limits_of_this_machine_are_read() -> None:
    limit, name = resources.memory_limit()
    assert limit > 64 * MIB and name in ("RAM", "cgroup's memory limit")
