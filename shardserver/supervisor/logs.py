"""Log events with fields, as text or JSON lines on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from typing import Any


class EventFormatter(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            event = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
            return json.dumps(event | ({"traceback": trace} if trace else {}), default=str)
        shown = " ".join(
            f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}" for name, value in fields.items()
        )
        return f"{moment} {record.levelname:<8} {record.getMessage()} {shown}".rstrip() + (
            f"\n{trace}" if trace else ""
        )


class RecentLines(logging.Handler):
    """The last lines of this process, for a snapshot: bounded in their number and each in its length."""

    MAX_LINES, MAX_LINE_CHARACTERS = 1000, 4000

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=self.MAX_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record)[: self.MAX_LINE_CHARACTERS])

    def lines(self) -> list[str]:
        return list(self._lines)


recent = RecentLines()


def configure(level: str, log_format: str) -> None:
    """May be called again: what has been logged stays in `recent`."""
    handlers = [logging.StreamHandler(sys.stderr), recent]
    for handler in handlers:
        handler.setFormatter(EventFormatter(as_json=log_format == "json"))
    logging.basicConfig(level=level.upper(), handlers=handlers, force=True)
