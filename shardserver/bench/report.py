"""What is printed: the figures of one run, beside the disk and the echo of the same run. Nothing here measures."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardserver.bench.disk_speed import DiskSpeed
from shardserver.bench.load import sort_latencies
from shardserver.bench.percentiles import summarize
from shardserver.bench.plan import Measurement, Outcome, Shape

Figures = dict[str, Any]
# Below this share of a core the peer was not what limited the rate.
BUSY = 0.9


def environment(directory: Path) -> Figures:
    """Where this ran. directory: the one that holds the data."""
    return {
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": sorted(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": _file_system(directory),
    }


def _commit() -> str:
    """Of the working tree that this module lies in; "unknown" when it is none."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _file_system(directory: Path) -> str:
    """Type of the mount that holds directory, from /proc/mounts."""
    path = str(directory.resolve()).rstrip("/") + "/"
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        if path.startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def figures_of(outcome: Outcome, shape: Shape) -> Figures:
    """Rates per second of the window, latencies in µs, CPU in µs per answered request."""
    kinds = {kind: _kind(measured, shape) for kind, measured in outcome.kinds.items()}
    peer, count = outcome.peer_cpu_s, outcome.window_answered
    return {
        "window_s": outcome.window_s,
        "kinds": kinds,
        "requests_per_s": count / outcome.window_s,
        "peer_busy": outcome.peer_busy,
        "peer_cpu_us_per_request": None if peer is None else _ratio(peer * 1e6, count),
        "load_cpu_us_per_request": _ratio(outcome.load_cpu_s * 1e6, count),
    }


def _kind(measured: Measurement, shape: Shape) -> Figures:
    sort_latencies(measured.latencies)
    latencies = summarize(measured.latencies)
    rate = measured.window_messages / measured.window_s
    batches = rate / shape.messages_per_batch
    return {
        "requests_per_s": measured.window_answered / measured.window_s,
        "messages_per_s": rate,
        "payload_mb_per_s": rate * shape.message_bytes / 1e6,
        "batch_mb_per_s": batches * shape.batch_bytes / 1e6,
        "latency_us": {name: None if value is None else value / 1e3 for name, value in latencies.items()},
        "latencies_recorded": len(measured.latencies),
        "latencies_unrecorded": measured.unrecorded,
        "answered_in_all": measured.answered,
        "messages_in_all": measured.messages,
        "refused": measured.refused,
        "first_refusal_code": measured.first_status,
        "empty_polls": measured.empty,
    }


def disk_figures(speed: DiskSpeed | None) -> Figures | None:
    return None if speed is None else asdict(speed)


def ratios(server: Figures, disk: Figures | None, echo: Figures | None, durability: str) -> Figures:
    """Server over yardstick; what cannot be said is left out. load_bound: the echo's rate ratio counts for nothing."""
    found: Figures = {}
    send = server["kinds"].get("send")
    if disk and send:
        p50, medians = send["latency_us"]["p50"], {"fsync": "small_sync_ns", "write": "small_write_ns"}
        if durability in medians and p50 is not None:
            found["send_p50_over_disk_p50"] = p50 * 1e3 / disk[medians[durability]]
        found["send_batch_bytes_over_disk_bytes"] = send["batch_mb_per_s"] * 1e6 / disk["large_bytes_per_s"]
    if echo:
        found["requests_over_echo_requests"] = _ratio(server["requests_per_s"], echo["requests_per_s"])
        busy = [one["peer_busy"] for one in (server, echo)]
        found["load_bound"] = any(one is None or one < BUSY for one in busy)
        if server["peer_cpu_us_per_request"] and echo["peer_cpu_us_per_request"]:
            found["cpu_over_echo_cpu"] = server["peer_cpu_us_per_request"] / echo["peer_cpu_us_per_request"]
    return found


def _ratio(value: float, by: float) -> float | None:
    return value / by if by else None


def as_text(report: Figures) -> str:
    place, settings = report["environment"], report["settings"]
    lines = [
        f"shardserver-bench at {place['commit']}: {report['command']}",
        f"  {place['cpu']}, cores {place['cores']}, kernel {place['kernel']}, Python {place['python']}",
        f"  server on cores {settings['server_cores']}, load on cores {settings['load_cores']}; "
        f"data on {place['file_system']}",
        f"  {settings['producers']} connection(s) a kind, depth {settings['depth']}, batches of "
        f"{settings['messages_per_batch']} x {settings['message_bytes']} bytes = {settings['batch_bytes']} bytes, "
        f"durability {settings['durability']}",
        f"  window {settings['seconds']:g} s after {settings['warmup_seconds']:g} s of warm-up; closed loop, latency "
        "from a free slot to the reply's last byte",
        *(f"  warning: {warning}" for warning in report["warnings"]),
        "",
        *_table(report),
        "",
        *_peer_lines("server", report["server"]),
        *(_peer_lines("echo", report["echo"]) if report["echo"] else ["echo    not measured"]),
        *_disk_lines(report["disk"]),
        *_ratio_lines(report["ratios"], settings["durability"]),
        f"check   {report['check']}",
    ]
    return "\n".join(lines)


def _table(report: Figures) -> list[str]:
    names = ("p50", "p90", "p99", "p99.9", "p99.99", "max")
    head = f"{'':14}{'requests/s':>12}{'messages/s':>12}{'payload MB/s':>14}" + "".join(f"{name:>10}" for name in names)
    lines = [head + "   µs"]
    for peer in ("server", "echo"):
        for kind, row in (report[peer] or {"kinds": {}})["kinds"].items():
            rates = f"{row['requests_per_s']:12.0f}{row['messages_per_s']:12.0f}{row['payload_mb_per_s']:14.2f}"
            lines.append(f"{peer + ' ' + kind:14}{rates}" + "".join(_number(row["latency_us"][name]) for name in names))
    return lines


def _number(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:10.1f}"


def _peer_lines(name: str, run: Figures) -> list[str]:
    busy = "CPU not measured" if run["peer_busy"] is None else f"busy {run['peer_busy']:.0%} of a core, "
    cpu = _us(run["peer_cpu_us_per_request"]) if run["peer_busy"] is not None else ""
    lines = [f"{name:8}{busy}{cpu} CPU per request; the load's {_us(run['load_cpu_us_per_request'])}"]
    for kind, row in run["kinds"].items():
        counts = f"{kind}: {row['answered_in_all']} answered in all, {row['latencies_recorded']} latencies"
        extra = [f"{row['empty_polls']} empty"] if row["empty_polls"] else []
        extra += [f"{row['latencies_unrecorded']} not recorded"] if row["latencies_unrecorded"] else []
        extra += [f"{row['refused']} refused, first code {row['first_refusal_code']}"] if row["refused"] else []
        lines.append("        " + ", ".join([counts, *extra]))
    return lines


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} µs"


def _disk_lines(disk: Figures | None) -> list[str]:
    if disk is None:
        return ["disk    not measured"]
    way = "O_DIRECT" if disk["is_direct"] else "page cache: O_DIRECT refused"
    return [
        f"disk    {way}: 4 KiB write + fdatasync p50 {disk['small_sync_ns'] / 1e3:.1f} µs ({disk['syncs']}), "
        f"4 KiB write p50 {disk['small_write_ns'] / 1e3:.1f} µs ({disk['writes']}), 1 MiB writes "
        f"{disk['large_bytes_per_s'] / 1e6:.1f} MB/s"
    ]


def _ratio_lines(found: Figures, durability: str) -> list[str]:
    lines = []
    if "send_p50_over_disk_p50" in found:
        what = "4 KiB write + fdatasync" if durability == "fsync" else "4 KiB write"
        lines.append(f"send p50 / disk p50 of {what}: {found['send_p50_over_disk_p50']:.2f}")
    if "send_batch_bytes_over_disk_bytes" in found:
        lines.append(f"send batch bytes/s / disk 1 MiB writes: {found['send_batch_bytes_over_disk_bytes']:.4f}")
    if found.get("requests_over_echo_requests") is not None:
        note = " load-bound" if found["load_bound"] else ""
        lines.append(f"server requests/s / echo requests/s: {found['requests_over_echo_requests']:.4f}{note}")
    if "cpu_over_echo_cpu" in found:
        lines.append(f"server CPU per request / echo CPU per request: {found['cpu_over_echo_cpu']:.1f}")
    return [("ratio   " if not index else "        ") + line for index, line in enumerate(lines)]
