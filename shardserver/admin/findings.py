"""What a look at a data directory has found, as lines for people and for programs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """NOTE: nothing is lost, and a start copes with it by itself."""

    DAMAGE = "damage"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """position: bytes from the start of the file; 0 of a directory."""

    severity: Severity
    part: str
    path: str
    position: int
    text: str

    def line(self, root: str) -> str:
        return f"{self.severity} {self.part} {self._shown(root)} at byte {self.position}: {self.text}"

    def as_dict(self, root: str) -> dict[str, Any]:
        return {
            "severity": str(self.severity),
            "part": self.part,
            "path": self._shown(root),
            "position": self.position,
            "text": self.text,
        }

    def _shown(self, root: str) -> str:
        path = os.path.relpath(self.path, root)
        return path if path.isprintable() else repr(path)[1:-1]


def damage(part: str, path: str, position: int, text: str) -> Finding:
    return Finding(Severity.DAMAGE, part, path, position, text)


def note(part: str, path: str, position: int, text: str) -> Finding:
    return Finding(Severity.NOTE, part, path, position, text)


def is_damaged(findings: Iterable[Finding]) -> bool:
    return any(one.severity is Severity.DAMAGE for one in findings)
