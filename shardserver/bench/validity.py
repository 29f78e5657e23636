"""What counts as a valid comparison with the echo (the limits are those of the project's decisions on measuring)."""

from __future__ import annotations

from shardserver.bench.outcome import Outcome

# Below this share of its core a peer was not what limited the rate.
BUSY = 0.9
# An echo that needs more CPU for a small request ran on a disturbed machine.
SUSPECT_ECHO_US = 15.0
SMALL_FRAME_BYTES = 4096


def is_load_bound(ours: Outcome, echo: Outcome) -> bool:
    return any(one.peer_busy is None or one.peer_busy < BUSY for one in (ours, echo))


def is_suspect(echo: Outcome, frame_bytes: int) -> bool:
    """frame_bytes: the larger of request and reply; a large frame's copies cost more by right."""
    cost_us = echo.peer_us_per_request
    return frame_bytes <= SMALL_FRAME_BYTES and cost_us is not None and cost_us > SUSPECT_ECHO_US
