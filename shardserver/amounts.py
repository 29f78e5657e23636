"""Sizes and times as people write them: "7 days", "1 h 30 m", "1.5 GiB", "1000"."""

from __future__ import annotations

import re
from fractions import Fraction

NO_LIMIT = (1 << 64) - 1

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_SIZES = {"": 1, "b": 1, "byte": 1}
_SIZES |= {f"{letter}{end}": 1000**power for power, letter in enumerate("kmgtp", 1) for end in ("", "b")}
_SIZES |= {f"{letter}i{end}": 1024**power for power, letter in enumerate("kmgtp", 1) for end in ("", "b")}
# As the peer's clients read them (the Rust crate humantime): M is a month, m a minute; a month is 30.44 days.
_TIMES = {"": 1, "us": 1, "usec": 1, "ms": 1000, "msec": 1000, "s": _SECOND, "sec": _SECOND, "second": _SECOND}
_TIMES |= dict.fromkeys(("m", "min", "minute"), 60 * _SECOND) | dict.fromkeys(("h", "hr", "hour"), 3600 * _SECOND)
_TIMES |= dict.fromkeys(("d", "day"), _DAY) | dict.fromkeys(("w", "wk", "week"), 7 * _DAY)
_TIMES |= dict.fromkeys(("M", "month"), 2_630_016 * _SECOND) | dict.fromkeys(("y", "yr", "year"), 31_557_600 * _SECOND)
# At most so many digits: what is read comes from clients.
_AMOUNT = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)(?![0-9.])\s*([a-zA-Z]*)\s*")


def size_bytes(text: str) -> int:
    """Bytes; NO_LIMIT for "unlimited", 0 for "server_default". Raises ValueError."""
    return _amount(text, _SIZES)


def time_us(text: str) -> int:
    """Microseconds; NO_LIMIT for "never", 0 for "server_default". Raises ValueError."""
    return _amount(text, _TIMES)


def _amount(text: str, units: dict[str, int]) -> int:
    """A part of a unit is cut off."""
    word = text.strip().lower()
    if word in ("unlimited", "never", "none"):
        return NO_LIMIT
    if word in ("server_default", "default"):
        return 0
    if not word:
        raise ValueError(text)
    total, position = 0, 0
    while position < len(text):
        match = _AMOUNT.match(text, position)
        if match is None or (not match[2] and match.end() - position < len(text)):  # a bare number stands alone
            raise ValueError(text)
        total += int(Fraction(match[1]) * _scale(match[2], units))
        position = match.end()
    return total


def _scale(unit: str, units: dict[str, int]) -> int:
    for known in (unit, unit.lower(), unit.lower().removesuffix("s")):
        if known in units and bool(known) == bool(unit):
            return units[known]
    raise ValueError(unit)
