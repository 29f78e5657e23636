"""The configuration: one frozen tree. Defaults < TOML file < environment < flags; unknown keys are refused."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import msgspec

from shardserver.amounts import NO_LIMIT, size_bytes, time_us
from shardserver.errors import ConfigError

PREFIX = "SHARDSERVER_"
# Read by the first start only; never part of the tree, so that no command can print them.
SECRET_NAMES = frozenset({"SHARDSERVER_ROOT_PASSWORD", "SHARDSERVER_ROOT_PASSWORD_FILE"})

# Of commands that ask a server as a client does.
CLIENT_NAMES = frozenset({"SHARDSERVER_PASSWORD"})


def _key(text: str, *, live: bool = False, **bounds: Any) -> msgspec.Meta:
    """live: a reload applies it. bounds: ge, gt, le, multiple_of, as msgspec.Meta takes them."""
    return msgspec.Meta(description=text, extra={"live": live}, **bounds)


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cores: Annotated[
        str,
        _key("Shards, at most 64: auto (what affinity and CPU quota allow), a number (more than cores share "
             "them), or a list of cores such as 0-3,8."),
    ] = "auto"  # fmt: skip
    pin: Annotated[str, _key("on: a shard stays on its core. off: the kernel moves it.")] = "on"
    host: Annotated[str, _key("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _key("TCP port; 0 lets the kernel choose.", ge=0, le=65535)] = 8090
    data: Annotated[str, _key("Data directory.")] = "data"
    durability: Annotated[str, _key("fsync, write or memory: when a send is acknowledged (durability.md).")] = "fsync"
    advertised_address: Annotated[
        str,
        _key("HOST, HOST:PORT or :PORT that cluster metadata names, where SDKs connect again; what is missing: the "
             "socket's own.", live=True),
    ] = ""  # fmt: skip
    disk_engine: Annotated[str, _key("auto, io_uring or threads; auto takes io_uring where the kernel has it.")] = (
        "auto"
    )
    shutdown_deadline_s: Annotated[
        float, _key("Seconds for answering and flushing at a stop.", gt=0, le=3600, live=True)
    ] = 9.0
    stall_limit_s: Annotated[
        float,
        _key("Seconds without a beat of its loop after which a ready shard is killed and started again; 0: never.",
             ge=0, le=86400),
    ] = 10.0  # fmt: skip
    recovery_stall_limit_s: Annotated[float, _key("The same for a shard that starts or recovers.", ge=0, le=86400)] = (
        120.0
    )
    require_data: Annotated[bool, _key("Refuse to initialise an empty data directory (an unmounted volume).")] = False


class NetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_frame_bytes: Annotated[
        int, _key("Bytes of the largest frame; costs twice that a connection at worst.", ge=4096, le=64 << 20)
    ] = 64 << 20
    first_frame_timeout_s: Annotated[
        float, _key("Seconds a new connection may stay silent.", gt=0, le=3600, live=True)
    ] = 10.0
    max_connections: Annotated[
        int, _key("Connections of a shard; one descriptor and some KiB each.", ge=1, le=1 << 20, live=True)
    ] = 8192
    handover_requests: Annotated[
        int,
        _key("Data requests in a row for one other shard after which a connection moves to it; 0: never.",
             ge=0, le=1 << 20, live=True),
    ] = 16  # fmt: skip
    in_flight_bytes_per_connection: Annotated[
        int, _key("Bytes read and not yet answered.", ge=4096, le=1 << 40, live=True)
    ] = 64 << 20
    in_flight_bytes_per_shard: Annotated[
        int,
        _key("The same for all connections together: memory. Unless set, at most an eighth of the memory limit for all "
             "shards.",
             ge=4096, le=1 << 40),
    ] = 512 << 20  # fmt: skip
    accept_shards: Annotated[
        str, _key("Shards that accept connections, such as 0-3,8; empty: all. The others serve over their rings.")
    ] = ""


class JournalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file_bytes: Annotated[
        int,
        _key("Bytes of a journal file, at creation only. More: longer recovery.",
             ge=256 << 10, le=1 << 30, multiple_of=4096),
    ] = 16 << 20  # fmt: skip
    files: Annotated[
        int,
        _key(
            "Files of the ring; it grows with the partitions and never shrinks. Disk and memory = files x file_bytes. "
            "Unless set, at least 4, and at most an eighth of the memory limit for all shards.",
            ge=3,
            le=4096,
        ),
    ] = 8
    max_write_bytes: Annotated[int, _key("Bytes of one group commit.", ge=64 << 10, le=1 << 20, multiple_of=4096)] = (
        1 << 20
    )
    direct_bytes: Annotated[
        int, _key("From so many waiting bytes on a partition writes its segment directly.", ge=4096, le=1 << 20)
    ] = 256 << 10


class StorageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tail_bytes: Annotated[
        int,
        _key("Bytes of recent batches kept in memory by a shard. Unless set, at most an eighth of the memory limit for "
             "all shards.",
             ge=1 << 20, le=1 << 40),
    ] = 256 << 20  # fmt: skip
    read_bytes: Annotated[
        int, _key("Bytes of the first read behind the tail.", ge=4096, le=64 << 20, multiple_of=4096)
    ] = 256 << 10
    read_ahead_bytes: Annotated[
        int, _key("Bytes that sequential reads grow to; costs 16 times that.", ge=4096, le=61 << 20, multiple_of=4096)
    ] = 1 << 20
    open_segments: Annotated[
        int, _key("Sealed segments of a shard kept open; one descriptor each.", ge=1, le=1 << 20)
    ] = 512
    damaged: Annotated[
        str, _key("error: a poll that meets a damaged batch gets code 4011. skip: it goes on behind it; stats count.")
    ] = "error"
    low_watermark_bytes: Annotated[
        int,
        _key(
            "Free bytes of the disk below which sends are refused (4006); reads, deletes and purges go on.",
            ge=0,
            live=True,
        ),
    ] = 64 << 20
    high_watermark_bytes: Annotated[
        int,
        _key("Free bytes from which sends are taken again; 0: a quarter more than the low watermark.", ge=0, live=True),
    ] = 0
    reserve_bytes: Annotated[
        int, _key("Disk space kept back for metadata, snapshots and the start on a full disk; 0: none.", ge=0)
    ] = 16 << 20
    max_total_bytes: Annotated[
        int,
        _key(
            "Bytes of all segments; above it the oldest sealed ones of any topic are deleted. 0: no limit.",
            ge=0,
            live=True,
        ),
    ] = 0
    retention_interval_s: Annotated[
        float,
        _key("Seconds between two looks of the cleaner at ages and sizes; 0: no cleaner.", ge=0, le=86400, live=True),
    ] = 10.0


class RetentionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message_expiry: Annotated[
        str,
        _key(
            "How long topics without a message_expiry of their own keep messages: never, or such as 7 days.", live=True
        ),
    ] = "never"
    max_topic_size: Annotated[
        str,
        _key("How much topics without a max_topic_size of their own keep: unlimited, or such as 10 GiB.", live=True),
    ] = "unlimited"
    roll_after: Annotated[
        str,
        _key("Where messages expire, a segment whose oldest message is so old is sealed, so that an idle topic's data "
             "expire too. A topic's message_expiry, if it is shorter, counts instead.", live=True),
    ] = "1 h"  # fmt: skip
    wait_for_consumers: Annotated[
        str,
        _key("How long a sealed segment is kept past its due time while a committed offset has not passed it: off, "
             "never (without end) or such as 7 days. Costs the disk space of what is kept.", live=True),
    ] = "7 days"  # fmt: skip


class PlacementRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Topics whose stream and topic match both globs live on these shards only."""

    stream: str
    topic: str
    shards: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(min_length=1)]


class PlacementConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    strategy: Annotated[
        str,
        _key("Shards of new partitions. balanced: the one with the fewest, round_robin: one after another, "
             "hash: by the partition's uid.", live=True),
    ] = "balanced"  # fmt: skip
    spread: Annotated[
        bool, _key("After a start, move partitions until the shards have equally many, few at a time.")
    ] = False
    rules: Annotated[
        tuple[PlacementRule, ...],
        _key("Tables `[[placement.rules]]` with the globs `stream` and `topic` and the `shards` that partitions of "
             "such topics live on; the first that matches wins (operations.md).", live=True),
    ] = ()  # fmt: skip


class RouterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ring_slots: Annotated[
        int,
        _key("Slots of the ring between two shards, a power of two; shards x (shards - 1) rings of 64 bytes a slot.",
             ge=16, le=65536),
    ] = 1024  # fmt: skip
    arena_bytes: Annotated[
        int,
        _key("Bytes of a shard's shared memory, used as they are needed; 0: the sum of what it may hold at worst.",
             ge=0, le=1 << 40, multiple_of=4096),
    ] = 0  # fmt: skip


class UsersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    failed_logins_a_minute: Annotated[
        int,
        _key("So many failed logins a minute of one address and user name cost nothing, per shard; others wait for "
             "each other. 0: none waits.",
             ge=0),
    ] = 10  # fmt: skip


class GroupsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    heartbeat_interval_s: Annotated[
        float, _key("A member of a consumer group that is silent for 1.2 times that is evicted.", gt=0, le=86400)
    ] = 30.0
    rebalancing_timeout_s: Annotated[
        float,
        _key("Seconds for which a partition that changes hands waits for commits of its old owner.", ge=0, le=86400),
    ] = 30.0


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: Annotated[str, _key("debug, info, warning or error.", live=True)] = "info"
    format: Annotated[str, _key("text or json.", live=True)] = "text"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: ServerConfig = ServerConfig()
    net: NetConfig = NetConfig()
    journal: JournalConfig = JournalConfig()
    storage: StorageConfig = StorageConfig()
    retention: RetentionConfig = RetentionConfig()
    placement: PlacementConfig = PlacementConfig()
    router: RouterConfig = RouterConfig()
    users: UsersConfig = UsersConfig()
    groups: GroupsConfig = GroupsConfig()
    log: LogConfig = LogConfig()


Values = dict[str, dict[str, Any]]
Sources = dict[str, str]
CHOICES = {
    "server.pin": ("on", "off"),
    "server.durability": ("fsync", "write", "memory"),
    "server.disk_engine": ("auto", "io_uring", "threads"),
    "storage.damaged": ("error", "skip"),
    "placement.strategy": ("balanced", "round_robin", "hash"),
    "log.level": ("debug", "info", "warning", "error"),
    "log.format": ("text", "json"),
}
# Texts that amounts.py reads, and the words that are fine besides.
AMOUNTS: dict[str, tuple[Callable[[str], int], tuple[str, ...]]] = {
    "retention.message_expiry": (time_us, ()),
    "retention.max_topic_size": (size_bytes, ()),
    "retention.roll_after": (time_us, ()),
    "retention.wait_for_consumers": (time_us, ("off",)),
}
# Lists of tables: no variable and no flag gives them.
TABLES = frozenset({"placement.rules"})
# What a journal file holds beside its writes: its header, and room kept for records without batches (journal.md).
JOURNAL_FILE_ROOM_BYTES = 68 << 10
RULES: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda c: c.journal.max_write_bytes + JOURNAL_FILE_ROOM_BYTES <= c.journal.file_bytes,
        "journal.max_write_bytes + 68 KiB must fit into journal.file_bytes",
    ),
    (
        lambda c: c.journal.direct_bytes * 2 <= c.journal.max_write_bytes,
        "journal.direct_bytes may be at most half of journal.max_write_bytes",
    ),
    (
        lambda c: c.storage.read_bytes <= c.storage.read_ahead_bytes,
        "storage.read_bytes may be at most storage.read_ahead_bytes",
    ),
    (
        lambda c: not c.storage.high_watermark_bytes or c.storage.high_watermark_bytes >= c.storage.low_watermark_bytes,
        "storage.high_watermark_bytes must be 0 or at least storage.low_watermark_bytes",
    ),
    (lambda c: c.router.ring_slots & (c.router.ring_slots - 1) == 0, "router.ring_slots must be a power of two"),
    (
        lambda c: c.router.arena_bytes == 0 or c.router.arena_bytes >= 4 * c.net.max_frame_bytes,
        "router.arena_bytes must be 0 or at least 4 x net.max_frame_bytes",
    ),
    (
        lambda c: all(limit == 0 or limit >= 1 for limit in (c.server.stall_limit_s, c.server.recovery_stall_limit_s)),
        "server.stall_limit_s and server.recovery_stall_limit_s must be 0 or at least 1",
    ),
)


def known_keys() -> dict[str, tuple[type, Any, str]]:
    """`section.key` -> (type, default, description)."""
    found = {}
    for section, kind in get_type_hints(Config).items():
        plain = get_type_hints(kind)
        for field in msgspec.structs.fields(kind):
            meta = field.type.__metadata__[0]
            found[f"{section}.{field.name}"] = (plain[field.name], field.default, meta.description)
    return found


def live_keys() -> frozenset[str]:
    """Those that a reload applies; the others hold until the next start."""
    found = set()
    for section, kind in get_type_hints(Config).items():
        for field in msgspec.structs.fields(kind):
            if field.type.__metadata__[0].extra["live"]:
                found.add(f"{section}.{field.name}")
    return frozenset(found)


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def with_values(config: Config, other: Config, keys: Iterable[str]) -> Config:
    """config with what `other` has for these keys."""
    for key in keys:
        section, name = key.split(".")
        part = msgspec.structs.replace(getattr(config, section), **{name: value_of(other, key)})
        config = msgspec.structs.replace(config, **{section: part})
    return config


def load(
    path: str | None, environment: Mapping[str, str], flags: Mapping[str, str]
) -> tuple[Config, Sources, list[str]]:
    """The effective configuration, where each set key came from, and warnings.

    Args:
        flags: `section.key` -> text, as given on the command line.

    Raises:
        ConfigError: unreadable file, unknown key, a value of the wrong type or outside its choices.
    """
    values: Values = {}
    sources: Sources = {}
    if path is not None:
        _take_file(path, values, sources)
    warnings = _take_environment(environment, values, sources)
    for key, text in flags.items():
        _set(values, sources, key, _value_of(key, text), "flag")
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_sentence(str(error), values, sources)) from error
    check_values(config)
    return config, sources, warnings


def _set(values: Values, sources: Sources, key: str, value: object, source: str) -> None:
    section, name = key.split(".")
    values.setdefault(section, {})[name] = value
    sources[key] = source


def _value_of(key: str, text: str) -> object:
    """The text of a flag or variable as the key's type; as it is when it is none, so that the tree refuses it."""
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(text, known_keys()[key][0], strict=False)
    return text


def _sentence(problem: str, values: Values, sources: Sources) -> str:
    """msgspec's "Expected `int` >= 1 - at `$.net.max_connections`", with the value found and its source."""
    expected, _, path = problem.rpartition(" - at `$.")
    path = path.rstrip("`")
    found: Any = values
    for step in re.findall(r"\w+", path):
        found = found[int(step)] if isinstance(found, list) else found[step]
    key = re.match(r"\w+\.\w+", path)
    source = sources.get(key[0], "default") if key else "default"
    return f"{path} = {found!r} ({source}): {expected.replace('`', '')}"


def check_rules(rules: Sequence[PlacementRule], shards: int) -> None:
    """Raises ConfigError: a rule names a shard that a server of so many shards does not have."""
    for number, rule in enumerate(rules, 1):
        missing = sorted({shard for shard in rule.shards if shard >= shards})
        if missing:
            named = f"shard {missing[0]}" if len(missing) == 1 else f"shards {', '.join(map(str, missing))}"
            there = "shard 0 alone" if shards == 1 else f"shards 0 to {shards - 1}"
            raise ConfigError(
                f"placement.rules: rule {number} ({rule.stream}/{rule.topic}) names {named}; this server has {there}"
            )


def _refuse_unknown(key: str, source: str) -> None:
    known = known_keys()
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown key {key} in {source}{hint}")


def _take_file(path: str, values: Values, sources: Sources) -> None:
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except (OSError, ValueError) as error:  # not there, not TOML, not UTF-8
        raise ConfigError(f"{path}: {error}") from error
    for section, content in tree.items():
        for name, value in content.items() if isinstance(content, dict) else [("", content)]:
            key = f"{section}.{name}" if name else section
            _refuse_unknown(key, path)
            _set(values, sources, key, value, path)


def _take_environment(environment: Mapping[str, str], values: Values, sources: Sources) -> list[str]:
    names = {PREFIX + key.replace(".", "_").upper(): key for key in known_keys()}
    warnings = []
    tables = {name for name, key in names.items() if key in TABLES}
    for name, text in environment.items():
        if name in tables:
            warnings.append(f"variable {name} is ignored: only the file gives {names[name]}")
        elif name in names:
            _set(values, sources, names[name], _value_of(names[name], text), name)
        elif name.startswith(PREFIX) and name not in SECRET_NAMES | CLIENT_NAMES:
            near = difflib.get_close_matches(name, names, 1)
            warnings.append(f"unknown variable {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return warnings


_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:\[\]\s]*))(?::(?P<port>[0-9]{1,5}))?")


def split_address(text: str) -> tuple[str, int]:
    """Host and port of HOST, HOST:PORT, :PORT, IPV6 or [IPV6]:PORT; "" and 0: not named. Raises ValueError."""
    is_bare_ipv6 = text.count(":") > 1 and "[" not in text
    found = _ADDRESS.fullmatch(f"[{text}]" if is_bare_ipv6 else text)
    if found is None or not 0 < int(found["port"] or 1) < 1 << 16:
        raise ValueError("HOST, HOST:PORT, :PORT or [IPV6]:PORT")
    if found["ipv6"]:
        ipaddress.IPv6Address(found["ipv6"])
    return found["ipv6"] or found["host"], int(found["port"] or 0)


def check_values(config: Config) -> None:
    """Raises ConfigError: a value is none of its choices, or two do not go together."""
    for key, allowed in CHOICES.items():
        value = value_of(config, key)
        if value not in allowed:
            raise ConfigError(f"{key} = {value!r}: one of {', '.join(allowed)}")
    _check_amounts(config)
    try:
        split_address(config.server.advertised_address)
    except ValueError as error:
        raise ConfigError(f"server.advertised_address = {config.server.advertised_address!r}: {error}") from error
    for holds, sentence in RULES:
        if not holds(config):
            raise ConfigError(sentence)


def _check_amounts(config: Config) -> None:
    for key, (read, words) in AMOUNTS.items():
        text = value_of(config, key)
        try:
            amount = 1 if text in words else read(text)
        except ValueError:
            amount = 0
        if not 1 <= amount <= NO_LIMIT:
            example = "10 GiB" if read is size_bytes else "7 days"
            allowed = ", ".join((*words, "never"))
            raise ConfigError(f"{key} = {text!r}: {allowed} or an amount above 0 such as {example}")
