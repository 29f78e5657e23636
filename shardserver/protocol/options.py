"""Topic options: the catalogue, reading them from the wire, and what a topic reports (commands 6.3)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

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

U64_MAX = (1 << 64) - 1
MAX_ENTRIES, MAX_BLOCK_BYTES = 1024, 100_000
OptionValue = str | bool | int
# As on the wire: key -> value with its kind, in the order of the entries.
Options: TypeAlias = dict[str, Typed]

_SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_SIZES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SECOND = 1_000_000
_TIMES = {"": 1, "us": 1, "ms": 1000, "s": _SECOND, "sec": _SECOND, "second": _SECOND, "m": 60 * _SECOND}
_TIMES |= {"min": 60 * _SECOND, "minute": 60 * _SECOND, "h": 3600 * _SECOND, "hour": 3600 * _SECOND}
_TIMES |= {"d": 86400 * _SECOND, "day": 86400 * _SECOND, "week": 7 * 86400 * _SECOND}
_AMOUNT = re.compile(r"\s*(\d+)\s*([a-zA-Z]*)\s*")


def _amount(text: str, units: dict[str, int]) -> int:
    """ "7 days", "1 h 30 m", "10 GiB", "1000". Raises ValueError."""
    lowered = text.strip().lower()
    if lowered in ("unlimited", "never", "none"):
        return U64_MAX
    total, position = 0, 0
    while position < len(text):
        match = _AMOUNT.match(text, position)
        if match is None:
            raise ValueError(text)
        unit = match.group(2).lower()
        scale = units.get(unit) or units.get(unit.removesuffix("s"))
        if scale is None:
            raise ValueError(text)
        total += int(match.group(1)) * scale
        position = match.end()
    if not text.strip():
        raise ValueError(text)
    return total


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


def _size(text: str) -> int:
    return _amount(text, _SIZES)


def _time(text: str) -> int:
    return _amount(text, _TIMES)


_DURABILITIES = ("replicated", "persisted", "write", "memory")
_CATALOGUE = (
    TopicOption("compression_algorithm", KIND_STRING, "none", "a label, the server never compresses", str,
                ("none", "gzip"), updatable=True),
    TopicOption("consumer_offset_durability", KIND_STRING, "replicated", "when a committed offset is acknowledged", str,
                _DURABILITIES),
    TopicOption("durability", KIND_STRING, "replicated", "when a send is acknowledged", str, _DURABILITIES),
    TopicOption("enforce_fsync", KIND_BOOL, False, "true: as durability = persisted", _boolean),
    TopicOption("max_topic_size", KIND_U64, U64_MAX, "bytes to keep, oldest sealed segments go first", _size,
                updatable=True),
    TopicOption("message_expiry", KIND_U64, U64_MAX, "microseconds to keep messages", _time, updatable=True),
    TopicOption("messages_required_to_save", KIND_U32, 1024, "paces the writing out of memory topics", int,
                lowest=1, highest=16_777_216),
    TopicOption("preallocate_segments", KIND_BOOL, False, "reserve disk space at segment creation", _boolean),
    TopicOption("segment_size", KIND_U64, 1 << 30, "bytes at which a segment is rolled", _size,
                lowest=1 << 20, highest=1 << 30, multiple_of=512),
    TopicOption("size_of_messages_required_to_save", KIND_U64, 1 << 20, "paces the writing out of memory topics", _size,
                highest=1 << 30),
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


def resolve_created(explicit: dict[str, OptionValue]) -> dict[str, OptionValue]:
    """What a new topic reports as explicit: sentinels 0 replaced by the default. Raises RejectedError(1019)."""
    resolved = dict(explicit)
    for key in ("message_expiry", "max_topic_size", "size_of_messages_required_to_save"):
        if resolved.get(key) == 0:
            resolved[key] = CATALOGUE[key].default
    check_topic_size(resolved)
    return resolved


def check_topic_size(values: dict[str, OptionValue]) -> None:
    size, segment = effective(values, "max_topic_size"), effective(values, "segment_size")
    if size != 0 and int(size) < int(segment):
        raise RejectedError(Code.INVALID_TOPIC_SIZE, f"max_topic_size {size}, segment_size {segment}")


def effective(values: dict[str, OptionValue], key: str) -> OptionValue:
    return values.get(key, CATALOGUE[key].default)


def derived(explicit: dict[str, OptionValue]) -> dict[str, OptionValue]:
    """Every other key with the value in force. enforce_fsync is the older spelling of durability: told when set."""
    return {key: one.default for key, one in CATALOGUE.items() if key not in explicit and key != "enforce_fsync"}
