"""The answer of `shardserver reload` as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def reload_text(answer: dict[str, Any]) -> str:
    return "\n".join(_lines(answer))


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    if not answer["applied"] and not answer["needs_restart"]:
        yield "nothing has changed"
    for key, value in answer["applied"].items():
        yield f"applied: {key} = {json.dumps(value)}"
    for key in answer["needs_restart"]:
        yield f"waits for a restart: {key}"
