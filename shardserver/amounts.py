"""Sizes and times as people write them: "7 days", "1 h 30 m", "10 GiB", "1000"."""

from __future__ import annotations

import re

NO_LIMIT = (1 << 64) - 1

_SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_SIZES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SECOND = 1_000_000
_TIMES = {"": 1, "us": 1, "ms": 1000, "s": _SECOND, "sec": _SECOND, "second": _SECOND, "m": 60 * _SECOND}
_TIMES |= {"min": 60 * _SECOND, "minute": 60 * _SECOND, "h": 3600 * _SECOND, "hour": 3600 * _SECOND}
_TIMES |= {"d": 86400 * _SECOND, "day": 86400 * _SECOND, "week": 7 * 86400 * _SECOND}
_AMOUNT = re.compile(r"\s*(\d+)\s*([a-zA-Z]*)\s*")


def size_bytes(text: str) -> int:
    """Bytes; NO_LIMIT for "unlimited". Raises ValueError."""
    return _amount(text, _SIZES)


def time_us(text: str) -> int:
    """Microseconds; NO_LIMIT for "never". Raises ValueError."""
    return _amount(text, _TIMES)


def _amount(text: str, units: dict[str, int]) -> int:
    lowered = text.strip().lower()
    if lowered in ("unlimited", "never", "none"):
        return NO_LIMIT
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
