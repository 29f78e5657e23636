"""What is printed of one run: its figures beside the disk's and the echo's. Nothing here measures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from shardserver.bench.disk_speed import DiskSpeed
from shardserver.bench.outcome import Measurement, Outcome
from shardserver.bench.plan import LoadSpec
from shardserver.bench.validity import is_load_bound

Figures = dict[str, Any]
PERCENTILE_NAMES = ("p50", "p90", "p99", "p99.9", "max")


def of_run(
    *,
    place: Figures,
    settings: Figures,
    warnings: list[str],
    spec: LoadSpec,
    server: Outcome,
    echo: Outcome | None,
    disk: list[DiskSpeed],
    faults: list[str],
    verified: bool,
    acknowledged: int,
) -> Figures:
    """Everything that is known of one run, ready for JSON. correct: no fault, nothing refused."""
    return {
        "environment": place,
        "settings": settings,
        "warnings": warnings,
        "server": of_outcome(server),
        "echo": None if echo is None else of_outcome(echo),
        "disk": [asdict(one) for one in disk],
        "ratios": ratios(server, echo),
        "acknowledged": acknowledged,
        "verified": verified,
        "faults": faults,
        "correct": not faults and not server.refused,
    }


def of_outcome(outcome: Outcome) -> Figures:
    peer, load = outcome.peer_cpu_s, outcome.load_cpu_s
    messages = sum(one.window_messages for one in outcome.kinds.values())
    size = sum(one.window_payload_bytes for one in outcome.kinds.values())
    return {
        "window_s": outcome.window_s,
        "kinds": {kind: _kind(measured, outcome.window_s) for kind, measured in outcome.kinds.items()},
        "requests_per_s": outcome.requests_per_s,
        "peer_busy": outcome.peer_busy,
        "peer_cpu_us_per_request": outcome.peer_us_per_request,
        "peer_cpu_s_per_gb": _ratio(peer, size / 1e9),
        "peer_cpu_s_per_million_messages": _ratio(peer, messages / 1e6),
        "load_cpu_us_per_request": _ratio(load * 1e6, outcome.window_answered),
        "load_cpu_s_per_gb": _ratio(load, size / 1e9),
        "load_cpu_s_per_million_messages": _ratio(load, messages / 1e6),
    }


def _kind(measured: Measurement, window_s: float) -> Figures:
    return {
        "requests_per_s": measured.window_answered / window_s,
        "messages_per_s": measured.window_messages / window_s,
        "payload_mb_per_s": measured.window_payload_bytes / window_s / 1e6,
        "batch_mb_per_s": measured.window_batch_bytes / window_s / 1e6,
        "latency_us": measured.latencies.summary_us(),
        "latencies_recorded": measured.latencies.count,
        "answered_in_all": measured.answered,
        "messages_in_all": measured.messages,
        "refused": measured.refused,
        "first_refusal_code": measured.first_status,
        "empty_polls": measured.empty,
        "unsent": measured.unsent,
    }


def ratios(server: Outcome, echo: Outcome | None) -> Figures:
    """Server over echo; what cannot be said is left out. load_bound: the ratio of rates counts for nothing."""
    if echo is None:
        return {}
    found: Figures = {"requests_over_echo": _ratio(server.requests_per_s, echo.requests_per_s)}
    found["load_bound"] = is_load_bound(server, echo)
    found["cpu_over_echo"] = _ratio(server.peer_us_per_request, echo.peer_us_per_request or 0)
    return found


def _ratio(value: float | None, by: float) -> float | None:
    return None if value is None or not by else value / by


# Text


def as_text(report: Figures) -> str:
    return "\n".join(
        [
            *environment_lines(report["environment"], report["command"]),
            *_setting_lines(report["settings"]),
            *(f"  warning: {warning}" for warning in report["warnings"]),
            "",
            *_table(report),
            "",
            *_peer_lines("server", report["server"]),
            *(_peer_lines("echo", report["echo"]) if report["echo"] else ["echo    not measured"]),
            *_disk_lines(report["disk"]),
            *_ratio_lines(report["ratios"]),
            *_check_lines(report),
        ]
    )


def environment_lines(place: Figures, command: str) -> list[str]:
    return [
        f"shardserver-bench at {place['commit']}: {command}",
        f"  {place['cpu']}, cores {place['cores']}, kernel {place['kernel']}, Python {place['python']}; "
        f"data on {place['file_system']}",
    ]


def _setting_lines(settings: Figures) -> list[str]:
    least, most = settings["message_bytes"]
    sizes = f"{least}" if least == most else f"{least}-{most}"
    loop = "closed loop, latency from a free slot" if settings["rate"] is None else (
        f"open loop, {settings['rate']:g} requests/s, latency from when each was due"
    )  # fmt: skip
    window = f"window {settings['seconds']:g} s after {settings['warmup_seconds']:g} s of warm-up"
    if settings["requests"] is not None:
        window = f"{settings['requests']} requests a kind"
    drawn = ", drawn anew for each request" if settings["switches"] else ""
    return [
        f"  server on cores {settings['server_cores']}, {settings['load_processes']} load process(es) on cores "
        f"{settings['load_cores']}; durability {settings['durability']}",
        f"  {settings['senders']} sender(s), {settings['pollers']} poller(s), depth {settings['depth']}, "
        f"{settings['partitions']} partition(s){drawn}; batches of "
        f"{settings['messages_per_batch']} x {sizes} bytes, {settings['batch_bytes']} bytes on the mean",
        f"  {window}; {loop} to the reply's last byte",
    ]


def _table(report: Figures) -> list[str]:
    head = f"{'':14}{'requests/s':>12}{'messages/s':>12}{'payload MB/s':>14}"
    lines = [head + "".join(f"{name:>10}" for name in PERCENTILE_NAMES) + "   µs"]
    for peer in ("server", "echo"):
        for kind, row in (report[peer] or {"kinds": {}})["kinds"].items():
            rates = f"{row['requests_per_s']:12.0f}{row['messages_per_s']:12.0f}{row['payload_mb_per_s']:14.2f}"
            numbers = "".join(number(row["latency_us"][name]) for name in PERCENTILE_NAMES)
            lines.append(f"{peer + ' ' + kind:14}{rates}{numbers}")
    return lines


def number(value: float | None, width: int = 10, digits: int = 1) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def _peer_lines(name: str, run: Figures) -> list[str]:
    lines = [f"{name:8}{_cpu_text(run, 'peer')}; busy {_percent(run['peer_busy'])}"]
    lines.append(f"{'':8}the load's: {_cpu_text(run, 'load')}")
    for kind, row in run["kinds"].items():
        counts = f"{kind}: {row['answered_in_all']} answered in all, {row['latencies_recorded']} latencies"
        extra = [f"{row['empty_polls']} empty"] if row["empty_polls"] else []
        extra += [f"{row['unsent']} due and not begun (charged up to the end)"] if row["unsent"] else []
        extra += [f"{row['refused']} refused, first code {row['first_refusal_code']}"] if row["refused"] else []
        lines.append("        " + ", ".join([counts, *extra]))
    return lines


def _cpu_text(run: Figures, whose: str) -> str:
    units = ("us_per_request", "s_per_gb", "s_per_million_messages")
    request, gb, million = (run[f"{whose}_cpu_{unit}"] for unit in units)
    rest = f"{number(gb, 0, 2)} s a GB, {number(million, 0, 2)} s a million messages"
    return f"CPU {number(request, 0)} µs a request, {rest}"


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.0%} of its cores"


def _disk_lines(disk: list[Figures]) -> list[str]:
    lines = [disk_text(one) for one in disk] or ["not measured"]
    return [("disk    " if not index else "        ") + line for index, line in enumerate(lines)]


def disk_text(one: Figures) -> str:
    way = "" if one["is_direct"] else " through the page cache (O_DIRECT refused)"
    return f"{one['tool']}: {one['job']}{way}: p50 {one['p50_ns'] / 1e3:.1f} µs, {one['bytes_per_s'] / 1e6:.1f} MB/s"


def _ratio_lines(found: Figures) -> list[str]:
    lines = []
    if found.get("requests_over_echo") is not None:
        note = " (load-bound: the ratio of CPU counts)" if found["load_bound"] else ""
        lines.append(f"ratio   server requests/s / echo requests/s: {found['requests_over_echo']:.3f}{note}")
    if found.get("cpu_over_echo") is not None:
        lines.append(f"        server CPU per request / echo CPU per request: {found['cpu_over_echo']:.2f}")
    return lines


def _check_lines(report: Figures) -> list[str]:
    if report["faults"]:
        return [f"check   WRONG: {fault}" for fault in report["faults"]]
    killed = " after kill -9 and a restart" if report["settings"]["killed"] else ""
    how = f"read back{killed}, count, order and hash are right" if report["verified"] else "the topic reports as many"
    return [f"check   {report['acknowledged']} messages acknowledged; {how}"]
