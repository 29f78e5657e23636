"""Decoders of metadata: whatever the bytes, a value or one error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.core import metadata_events as ev
from shardserver.core.follower import Follower
from shardserver.core.metadata_snapshot import decode_snapshot
from shardserver.core.partition_label import decode_label
from shardserver.core.replication import JoinAnswer

NOT_UTF8 = b"\x81\xa6client\xa1\xff"
TOO_DEEP = b"\x81\xa1z" + b"\x91" * 100_000 + b"\xc0"
TRUNCATED = b"\x81\xa6client"
NAME_NOT_UTF8 = b"\x82\xa8metadata\x81\xa5users\x81\x00\x81\xa4name\xa1\xff\xa7replies\x90"


@pytest.mark.parametrize("decode", [ev.decode_change, decode_snapshot])
@pytest.mark.parametrize("raw", [NOT_UTF8, TOO_DEEP, TRUNCATED, NAME_NOT_UTF8])
def test_metadata_that_cannot_be_decoded_is_one_error(decode: Callable[[bytes], Any], raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(raw)


@given(st.binary(max_size=64))
def test_no_bytes_give_another_error(raw: bytes) -> None:
    for decode in (ev.decode_change, decode_snapshot, decode_label):
        try:
            decode(raw)
        except msgspec.DecodeError:
            continue


@pytest.mark.parametrize("raw", [b"\x81\xa6stream\x81\xa4name\xa1\xff", TOO_DEEP, TRUNCATED])
def test_a_label_that_cannot_be_decoded_means_nothing(raw: bytes) -> None:
    assert decode_label(raw) is None


class WriterPeer:
    """Answers a JOIN with what it was given."""

    rings = None

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def ask(self, operation: int, inline: bytes, payload: bytes, done: Callable[..., None], *, survives: bool) -> None:
        done(self)

    def joined(self) -> bytes:
        return self._answer


@pytest.mark.parametrize("snapshot", [NAME_NOT_UTF8, TOO_DEEP, TRUNCATED])
def test_a_follower_whose_snapshot_cannot_be_decoded_is_broken(snapshot: bytes) -> None:
    answer, told = msgspec.msgpack.encode(JoinAnswer(boot_number=1, snapshot=snapshot)), list[Exception]()
    follower = Follower(WriterPeer(answer), told.append)  # type: ignore[arg-type]
    with pytest.raises(msgspec.DecodeError):
        follower.writer_began()
    assert len(told) == 1 and follower.boot_number == 0
