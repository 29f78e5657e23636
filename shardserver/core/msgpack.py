"""msgpack from a file or another shard: whatever the bytes are, they give a value or one named error."""

from __future__ import annotations

from typing import TypeVar

import msgspec

Value = TypeVar("Value")


def decode_value(decoder: msgspec.msgpack.Decoder[Value], raw: bytes | memoryview) -> Value:
    """What decoder makes of raw.

    Raises:
        msgspec.DecodeError: also where msgspec itself lets out UnicodeDecodeError (text that is not UTF-8) or
            RecursionError (a field that it skips and that is too deep).
    """
    try:
        return decoder.decode(raw)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
