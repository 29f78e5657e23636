"""The configuration: order of sources, refusals as sentences."""

from pathlib import Path

import pytest

from shardserver.config import Config, PlacementRule, check_rules, known_keys, load, split_address
from shardserver.config_text import describe
from shardserver.errors import ConfigError

RULE = '[[placement.rules]]\nstream = "a*"\ntopic = "*"\n'


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(str(path), {}, {})
    return str(raised.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server.prot = 1", "unknown key server.prot in FILE; did you mean server.port?"),
        ("[serve]\nport = 1", "unknown key serve.port in FILE; did you mean server.port?"),
        ("port = 1", "unknown key port in FILE"),
        ("server = 3", "unknown key server in FILE"),
        ('server.port = "80"', "server.port = '80' (FILE): Expected int, got str"),
        ("server.port = 70000", "server.port = 70000 (FILE): Expected int <= 65535"),
        ("server.port = -1", "server.port = -1 (FILE): Expected int >= 0"),
        ("net.max_connections = true", "net.max_connections = True (FILE): Expected int, got bool"),
        ("net.max_connections = 0", "net.max_connections = 0 (FILE): Expected int >= 1"),
        ("net.max_frame_bytes = 0", "net.max_frame_bytes = 0 (FILE): Expected int >= 4096"),
        ("storage.tail_bytes = -5", "storage.tail_bytes = -5 (FILE): Expected int >= 1048576"),
        ("journal.files = 2", "journal.files = 2 (FILE): Expected int >= 3"),
        (
            "journal.file_bytes = 1000001",
            "journal.file_bytes = 1000001 (FILE): Expected int that's a multiple of 4096",
        ),
        ("journal.file_bytes = 1048576", "journal.max_write_bytes + 68 KiB must fit into journal.file_bytes"),
        ("journal.direct_bytes = 1048576", "journal.direct_bytes may be at most half of journal.max_write_bytes"),
        ("storage.read_ahead_bytes = 4096", "storage.read_bytes may be at most storage.read_ahead_bytes"),
        ("router.ring_slots = 1000", "router.ring_slots must be a power of two"),
        ("router.ring_slots = 8", "router.ring_slots = 8 (FILE): Expected int >= 16"),
        ("router.arena_bytes = 1048576", "router.arena_bytes must be 0 or at least 4 x net.max_frame_bytes"),
        (
            "server.stall_limit_s = 0.5",
            "server.stall_limit_s and server.recovery_stall_limit_s must be 0 or at least 1",
        ),
        ("server.shutdown_deadline_s = nan", "server.shutdown_deadline_s = nan (FILE): Expected float > 0.0"),
        ("server.shutdown_deadline_s = inf", "server.shutdown_deadline_s = inf (FILE): Expected float <= 3600.0"),
        ('log.level = "loud"', "log.level = 'loud': one of debug, info, warning, error"),
        (
            'server.advertised_address = "host:0"',
            "server.advertised_address = 'host:0': HOST, HOST:PORT, :PORT or [IPV6]:PORT",
        ),
        ("port =", "FILE: Invalid value"),
        ('placement.strategy = "random"', "placement.strategy = 'random': one of balanced, round_robin, hash"),
        ("placement.rules = 3", "placement.rules = 3 (FILE): Expected array, got int"),
        ("placement.rules = [1]", "placement.rules[0] = 1 (FILE): Expected object, got int"),
        ("[placement.rules]", "placement.rules = {} (FILE): Expected array, got object"),
        ("[[placement.rule]]", "unknown key placement.rule in FILE; did you mean placement.rules?"),
        (
            RULE + "shard = [0]",
            "placement.rules[0] = {'stream': 'a*', 'topic': '*', 'shard': [0]} (FILE): "
            "Object contains unknown field shard",
        ),
        (
            RULE,
            "placement.rules[0] = {'stream': 'a*', 'topic': '*'} (FILE): Object missing required field shards",
        ),
        (RULE + "shards = []", "placement.rules[0].shards = [] (FILE): Expected array of length >= 1"),
        (
            RULE + "shards = [0]\n" + RULE + "shards = [1, -1]",
            "placement.rules[1].shards[1] = -1 (FILE): Expected int >= 0",
        ),
        (RULE + 'shards = ["0"]', "placement.rules[0].shards[0] = '0' (FILE): Expected int, got str"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path, text).startswith(sentence)


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(str(tmp_path / "none.toml"), {}, {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="decode"):
        load(str(tmp_path / "binary.toml"), {}, {})


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[server]\nport = 1\nhost = "::1"\ndata = "here"\nshutdown_deadline_s = 3')
    environment = {"SHARDSERVER_SERVER_PORT": "2", "SHARDSERVER_SERVER_HOST": "::2", "SHARDSERVER_ROOT_PASSWORD": "x"}
    config, sources, warnings = load(str(path), environment, {"server.port": "3"})
    assert (config.server.port, config.server.host, config.server.data) == (3, "::2", "here")
    assert config.server.shutdown_deadline_s == 3.0
    assert config.journal == Config().journal
    assert (sources["server.port"], sources["server.host"]) == ("flag", "SHARDSERVER_SERVER_HOST")
    assert sources["server.data"] == str(path) and warnings == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("SERVER_PORT", "many", "server.port = 'many' .*Expected int, got str"),
        ("SERVER_PORT", "-1", "server.port = -1 .*Expected int >= 0"),
        ("SERVER_REQUIRE_DATA", "maybe", "server.require_data = 'maybe' .*Expected bool, got str"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(name: str, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        load(None, {f"SHARDSERVER_{name}": text}, {})
    assert f"SHARDSERVER_{name}" in str(raised.value)


def test_an_unknown_variable_is_a_warning_with_the_nearest_name() -> None:
    _, _, warnings = load(None, {"SHARDSERVER_SERVER_PROT": "1", "SHARDSERVER_ROOT_PASSWORD_FILE": "x"}, {})
    assert warnings == ["unknown variable SHARDSERVER_SERVER_PROT; did you mean SHARDSERVER_SERVER_PORT?"]


def test_the_description_is_a_file_that_gives_the_same_configuration(tmp_path: Path) -> None:
    config, sources, _ = load(None, {"SHARDSERVER_NET_MAX_CONNECTIONS": "7"}, {"server.durability": "write"})
    path = tmp_path / "printed.toml"
    path.write_text(describe(config, sources))
    assert load(str(path), {}, {})[0] == config
    assert "max_connections = 7  # SHARDSERVER_NET_MAX_CONNECTIONS" in path.read_text()
    assert 'durability = "write"  # flag' in path.read_text()


def test_every_key_has_a_description_and_its_default_holds() -> None:
    assert all(text for _, _, text in known_keys().values())
    assert load(None, {}, {})[0] == Config()


def test_rules_are_tables_of_the_file_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[placement]\nstrategy = "hash"\n' + RULE + "shards = [0, 2]\n" + RULE + "shards = [1]\n[log]\n")
    config, sources, _ = load(str(path), {}, {})
    assert config.placement.rules == (PlacementRule("a*", "*", (0, 2)), PlacementRule("a*", "*", (1,)))
    assert config.placement.strategy == "hash" and sources["placement.rules"] == str(path)
    printed = tmp_path / "printed.toml"
    printed.write_text(describe(config, sources))
    assert f"[[placement.rules]]  # {path}" in printed.read_text()
    assert load(str(printed), {}, {})[0] == config


def test_a_variable_gives_the_strategy_and_no_rules() -> None:
    given = {"SHARDSERVER_PLACEMENT_STRATEGY": "round_robin", "SHARDSERVER_PLACEMENT_RULES": "[]"}
    config, sources, warnings = load(None, given, {})
    assert config.placement.strategy == "round_robin" and "placement.rules" not in sources
    assert warnings == ["variable SHARDSERVER_PLACEMENT_RULES is ignored: only the file gives placement.rules"]


def test_a_rule_that_names_a_missing_shard_is_refused_with_its_number() -> None:
    rules = (PlacementRule("*", "a", (0,)), PlacementRule("orders", "*", (5, 1, 4, 5)))
    check_rules(rules, 6)
    for shards, sentence in (
        (5, "placement.rules: rule 2 (orders/*) names shard 5; this server has shards 0 to 4"),
        (4, "placement.rules: rule 2 (orders/*) names shards 4, 5; this server has shards 0 to 3"),
        (1, "placement.rules: rule 2 (orders/*) names shards 1, 4, 5; this server has shard 0 alone"),
    ):
        with pytest.raises(ConfigError) as raised:
            check_rules(rules, shards)
        assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", 0)),
        ("broker.example", ("broker.example", 0)),
        ("10.0.0.1:9000", ("10.0.0.1", 9000)),
        (":65535", ("", 65535)),
        ("fd00::1", ("fd00::1", 0)),
        ("[fd00::1]", ("fd00::1", 0)),
        ("[fd00::1]:1", ("fd00::1", 1)),
    ],
)
def test_an_address_is_a_host_a_port_or_both(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    "text", ["a:", "a:b", "a:65536", "a:1:2", "[a]:1", "[::1", "::1]", "a b", "http://a:1", "[]:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        split_address(text)
