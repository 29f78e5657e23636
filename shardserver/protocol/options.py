"""Topic options: the catalogue, reading them from the wire, and what a topic reports (commands 6.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from shardserver.amounts import NO_LIMIT, size_bytes, time_us
from shardserver.errors import Code, RejectedError
from shardserver.protocol.primitives import Reader
from shardserver.protocol.tlv import (
    KIND_BOOL,
    KIND_STRING,
    KIND_U32,
    KIND_U64,
    Typed,
    encode_typed,
    read_typed,
)

U64_MAX = NO_LIMIT
MAX_ENTRIES, MAX_BLOCK_BYTES = 1024, 100_000
OptionValue = str | bool | int
# As on the wire: key -> value with its kind, in the order of the entries.
Options: TypeAlias = dict[str, Typed]


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


@dataclass(frozen=True, slots=True)
class TopicOption:
    key: str
    kind: int
    default: OptionValue
    description: str
    read_text: Callable[[str], OptionValue]
    allowed: tuple[str, ...] = ()
    lowest: int = 0
    highest: int = U64_MAX
    multiple_of: int = 1
    updatable: bool = False


_DURABILITIES = ("replicated", "persisted", "write", "memory")
_CATALOGUE = (
    TopicOption("compression_algorithm", KIND_STRING, "none",
                "A label that clients may act on, none or gzip; the server itself never compresses.",
                str, ("none", "gzip"), updatable=True),
    TopicOption("consumer_offset_durability", KIND_STRING, "replicated",
                "When a committed offset is acknowledged: replicated (the server's default), persisted, write, memory.",
                str, _DURABILITIES),
    TopicOption("durability", KIND_STRING, "replicated",
                "When a send is acknowledged: replicated (the server's default), persisted (fsync), write, memory.",
                str, _DURABILITIES),
    TopicOption("enforce_fsync", KIND_BOOL, False,
                "The older spelling of durability = persisted; it wins over a weaker durability.", _boolean),
    TopicOption("max_topic_size", KIND_U64, U64_MAX,
                "Bytes that the topic keeps, such as 10 GiB; the oldest sealed segments go first.",
                size_bytes, updatable=True),
    TopicOption("message_expiry", KIND_U64, U64_MAX,
                "How long messages are kept, in microseconds or such as 7 days.", time_us, updatable=True),
    TopicOption("messages_required_to_save", KIND_U32, 1024,
                "With durability memory: so many waiting messages are written out, and all of them within a second.",
                int, lowest=1, highest=16_777_216),
    TopicOption("preallocate_segments", KIND_BOOL, False,
                "Reserve a segment's disk space when it is created; all partitions together at most 64 GiB.", _boolean),
    TopicOption("segment_size", KIND_U64, 1 << 30,
                "Bytes at which a segment is sealed and the next begins: 1 MiB to 1 GiB, a multiple of 512.",
                size_bytes, lowest=1 << 20, highest=1 << 30, multiple_of=512),
    TopicOption("size_of_messages_required_to_save", KIND_U64, 1 << 20,
                "With durability memory: so many waiting bytes are written out, and all of them within a second.",
                size_bytes, highest=1 << 30),
)  # fmt: skip
CATALOGUE = {option.key: option for option in _CATALOGUE}


def typed_options(values: dict[str, OptionValue]) -> Options:
    """Canonical values of catalogue keys with their kinds, sorted by key."""
    return {key: Typed(CATALOGUE[key].kind, values[key]) for key in sorted(values)}


def encode_options(options: Options) -> bytes:
    return b"".join(encode_typed(Typed(KIND_STRING, key)) + encode_typed(value) for key, value in options.items())


def decode_options(block: memoryview) -> Options:
    """The entries of an options block, known keys or not. Raises RejectedError 3, 4042 or 4043."""
    if len(block) > MAX_BLOCK_BYTES:
        raise RejectedError(Code.OPTIONS_BLOCK_TOO_LARGE, f"{len(block)} bytes")
    reader, options = Reader(block), Options()
    while reader.left:
        key = read_typed(reader, Code.INVALID_OPTION_VALUE).value
        if not isinstance(key, str) or key in options:
            raise RejectedError(Code.INVALID_OPTION_VALUE, f"option key {key!r}")
        options[key] = read_typed(reader, Code.INVALID_OPTION_VALUE)
        if len(options) > MAX_ENTRIES:
            raise RejectedError(Code.OPTIONS_BLOCK_TOO_LARGE, f"more than {MAX_ENTRIES} entries")
    return options


def parse_topic_options(options: Options, *, update: bool = False) -> dict[str, OptionValue]:
    """Canonical values of the options in a request. Raises RejectedError 4041, 4042."""
    values: dict[str, OptionValue] = {}
    for key, typed in options.items():
        option = CATALOGUE.get(key)
        if option is None or (update and not option.updatable):
            raise RejectedError(Code.UNSUPPORTED_OPTION_KEY, key)
        values[key] = _canonical(option, typed)
    return values


def _canonical(option: TopicOption, typed: Typed) -> OptionValue:
    try:
        value = _read(option, typed)
    except ValueError as error:
        raise RejectedError(Code.INVALID_OPTION_VALUE, f"{option.key}: {typed}") from error
    if option.allowed and value not in option.allowed:
        raise RejectedError(Code.INVALID_OPTION_VALUE, f"{option.key}: {value!r}")
    numeric = isinstance(value, int) and not isinstance(value, bool)
    if numeric and not (option.lowest <= value <= option.highest and value % option.multiple_of == 0):  # type: ignore[operator]  # an int
        raise RejectedError(Code.INVALID_OPTION_VALUE, f"{option.key}: {value}")
    return value


def _read(option: TopicOption, typed: Typed) -> OptionValue:
    if isinstance(typed.value, str):
        return option.read_text(typed.value)
    if typed.kind != option.kind or not isinstance(typed.value, int):
        raise ValueError(typed)
    return typed.value


@dataclass(frozen=True, slots=True)
class TopicDefaults:
    """What the sentinel 0 of an option, or its absence, means on this server: microseconds, bytes."""

    message_expiry: int = U64_MAX
    max_topic_size: int = U64_MAX

    def of(self, key: str) -> OptionValue:
        match key:
            case "message_expiry":
                return self.message_expiry
            case "max_topic_size":
                return self.max_topic_size
        return CATALOGUE[key].default


PLAIN_DEFAULTS = TopicDefaults()


def resolve_created(explicit: dict[str, OptionValue], defaults: TopicDefaults) -> dict[str, OptionValue]:
    """What a new topic reports as explicit: sentinels 0 replaced by the default. Raises RejectedError(1019)."""
    check_topic_size(explicit)
    resolved = dict(explicit)
    for key in ("message_expiry", "max_topic_size", "size_of_messages_required_to_save"):
        if resolved.get(key) == 0:
            resolved[key] = defaults.of(key)
    return resolved


def check_topic_size(values: dict[str, OptionValue]) -> None:
    """Of what someone asked for: the server's default may be smaller than a segment, and then keeps one."""
    size, segment = int(values.get("max_topic_size", 0)), effective(values, "segment_size")
    if size != 0 and size < int(segment):
        raise RejectedError(Code.INVALID_TOPIC_SIZE, f"max_topic_size {size}, segment_size {segment}")


def effective(values: dict[str, OptionValue], key: str, defaults: TopicDefaults = PLAIN_DEFAULTS) -> OptionValue:
    """As reported: an explicit 0 stays 0."""
    return values.get(key, defaults.of(key))


def limit_in_force(values: dict[str, OptionValue], key: str, defaults: TopicDefaults) -> int | None:
    """message_expiry or max_topic_size as it acts; None: there is no limit."""
    limit = int(values.get(key, 0)) or int(defaults.of(key))
    return None if limit == U64_MAX else limit


def derived(explicit: dict[str, OptionValue], defaults: TopicDefaults = PLAIN_DEFAULTS) -> dict[str, OptionValue]:
    """Every other key with the value in force. enforce_fsync is the older spelling of durability: told when set."""
    return {key: defaults.of(key) for key in CATALOGUE if key not in explicit and key != "enforce_fsync"}
