"""The number of shards: affinity, quota, hyper-threads, and what is asked for."""

from pathlib import Path

import pytest

from shardserver.errors import ConfigError
from shardserver.supervisor.cores import Machine, choose_accepting, choose_cores, siblings_of

FOUR = Machine((0, 1, 2, 3))


@pytest.mark.parametrize(
    ("quota", "cores", "decided_by"),
    [
        (None, (0, 1, 2, 3), "affinity of 4 cores"),
        (8.0, (0, 1, 2, 3), "affinity of 4 cores"),
        (4.0, (0, 1, 2, 3), "affinity of 4 cores"),
        (2.9, (0, 1), "CPU quota of 2.9 cores"),
        (0.5, (0,), "CPU quota of 0.5 cores"),
    ],
)
def test_the_default_is_the_smaller_of_affinity_and_quota(
    quota: float | None, cores: tuple[int, ...], decided_by: str
) -> None:
    choice = choose_cores("auto", Machine((0, 1, 2, 3), quota))
    assert (choice.cores, choice.decided_by) == (cores, decided_by)


def test_physical_cores_come_before_their_hyper_threads() -> None:
    pairs = {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}
    assert choose_cores("auto", Machine((0, 1, 2, 3), None, pairs)).cores == (0, 2, 1, 3)
    assert choose_cores("2", Machine((0, 1, 2, 3), None, pairs)).cores == (0, 2)
    assert choose_cores("auto", Machine((1, 2, 3), 2.0, pairs)).cores == (1, 2)


def test_a_list_is_taken_as_it_is_written() -> None:
    assert choose_cores("3,0-1", FOUR).cores == (3, 0, 1)
    assert choose_cores("2-2", FOUR).cores == (2,)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0", "server.cores = 0: 1 to 64 shards"),
        ("65", "server.cores = 65: 1 to 64 shards"),
        ("1,1", "server.cores = '1,1': core 1 is named twice"),
        ("0-2,1", "server.cores = '0-2,1': core 1 is named twice"),
        ("3-1", "server.cores = '3-1': the range 3-1 runs backwards"),
        ("0-8", r"server.cores = '0-8': core 4 is not one this process may use \(0,1,2,3\)"),
        ("0-99999999999", "core 4 is not one"),
        ("7,8", "core 7 is not one"),
        ("", "'' is neither a core nor a range; auto, a number, or a list"),
        ("0,", "'' is neither a core nor a range"),
        ("-1", "'-1' is neither a core nor a range"),
        ("1-", None),
        ("all", "'all' is neither a core nor a range"),
    ],
)
def test_another_value_is_refused_with_a_sentence(text: str, sentence: str | None) -> None:
    with pytest.raises(ConfigError, match=sentence):
        choose_cores(text, FOUR)


def test_more_shards_than_cores_share_them_round_robin() -> None:
    assert choose_cores("6", FOUR).cores == (0, 1, 2, 3, 0, 1)
    assert len(choose_cores("64", Machine((5,))).cores) == 64


def test_there_are_at_most_64_shards() -> None:
    large = Machine(tuple(range(128)))
    choice = choose_cores("auto", large)
    assert (choice.cores, choice.decided_by) == (tuple(range(64)), "at most 64 shards")
    assert choose_cores("auto", Machine(tuple(range(128)), 65.0)).cores == tuple(range(64))
    assert choose_cores("auto", Machine(tuple(range(128)), 64.0)).decided_by == "CPU quota of 64 cores"
    assert choose_cores("64-127", large).cores == tuple(range(64, 128))
    with pytest.raises(ConfigError, match="more than 64 cores"):
        choose_cores("0-64", large)


@pytest.mark.parametrize(
    ("text", "accepting"), [("", {0, 1, 2, 3}), ("0", {0}), ("0-1,3", {0, 1, 3}), ("2,2", {2}), ("0-3", {0, 1, 2, 3})]
)
def test_the_shards_that_accept_are_all_or_those_named(text: str, accepting: set[int]) -> None:
    assert choose_accepting(text, 4) == accepting


@pytest.mark.parametrize("text", ["4", "0-4", "3-1", "all", ",", "-1", "99999999999999"])
def test_a_shard_that_is_not_there_cannot_accept(text: str) -> None:
    with pytest.raises(ConfigError, match=f"net.accept_shards = '{text}'"):
        choose_accepting(text, 4)


def test_siblings_are_read_from_sysfs_and_a_core_without_is_alone(tmp_path: Path) -> None:
    topology = tmp_path / "cpu4" / "topology"
    topology.mkdir(parents=True)
    (topology / "thread_siblings_list").write_text("0,4-5\n")
    assert siblings_of(4, tmp_path) == (0, 4, 5)
    assert siblings_of(9, tmp_path) == (9,)
