"""`shardserver verify`: what is damaged in the data directory of a stopped server, with path and position."""

from __future__ import annotations

import json
from collections.abc import Iterable

from shardserver.admin.findings import Finding, Severity, is_damaged
from shardserver.admin.inspection import inspect
from shardserver.admin.stopped_server import read_stopped

CLEAN, DAMAGED = 0, 1


async def verify(path: str, *, as_json: bool) -> int:
    """Print what was found; gives the exit code: 0 nothing is damaged, 1 something is. Raises ConfigError."""
    async with read_stopped(path) as (disk, data):
        result = await inspect(disk, data)
    print_findings(result.findings, data, as_json=as_json)
    return DAMAGED if is_damaged(result.findings) else CLEAN


def print_findings(findings: Iterable[Finding], root: str, *, as_json: bool) -> None:
    """Damage first. JSON: a line each."""
    ordered = sorted(findings, key=lambda one: (one.severity is Severity.NOTE, one.path, one.position))
    for one in ordered:
        print(json.dumps(one.as_dict(root)) if as_json else one.line(root))
    damaged = sum(one.severity is Severity.DAMAGE for one in ordered)
    if not as_json:
        print(f"{damaged} damaged, {len(ordered) - damaged} to know of" if ordered else "clean")
