"""Sizes and times as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.amounts import NO_LIMIT, size_bytes, time_us

DAY = 86_400_000_000


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("1000", 1000),
        ("10 GiB", 10 << 30),
        ("10GiB", 10 << 30),
        ("10 gib", 10 << 30),
        ("10 GB", 10**10),
        ("10 G", 10**10),
        ("1.5 MiB", 3 << 19),
        ("0.1 B", 0),
        (" 2 Ki ", 2048),
        ("7 bytes", 7),
        ("1 PiB", 1 << 50),
        ("1 GiB 1 MiB", (1 << 30) + (1 << 20)),
        ("unlimited", NO_LIMIT),
        ("None", NO_LIMIT),
        ("server_default", 0),
    ],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert size_bytes(text) == bytes_


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("7 days", 7 * DAY),
        ("7days", 7 * DAY),
        ("7 Days", 7 * DAY),
        ("1d", DAY),
        ("2 weeks", 14 * DAY),
        ("1 h 30 m", 5_400_000_000),
        ("1hour 30min", 5_400_000_000),
        ("2 hrs", 7_200_000_000),
        ("1 M", 2_630_016_000_000),
        ("1 m", 60_000_000),
        ("2 years", 63_115_200_000_000),
        ("1.5 s", 1_500_000),
        ("500 ms", 500_000),
        ("12", 12),
        ("never", NO_LIMIT),
        ("default", 0),
    ],
)
def test_times(text: str, us: int) -> None:
    assert time_us(text) == us


@pytest.mark.parametrize(
    "text", ["", " ", "x", "s", "1 x", "-1", "1..2", ".5 s", "1 GiB x", "1e3", "1 2", "1 s 2", "1.", "٣ days", "9" * 40]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    for read in (size_bytes, time_us):
        with pytest.raises(ValueError, match=r".*"):
            read(text)


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    for read in (size_bytes, time_us):
        with contextlib.suppress(ValueError):
            assert read(text) >= 0


@given(st.integers(0, NO_LIMIT))
def test_a_plain_number_is_itself(number: int) -> None:
    assert size_bytes(str(number)) == time_us(str(number)) == number
