"""From a send's bytes to its reply, with its journal write between: as many calls for a thousand messages as for one.

A plain build shows Python's calls alone. The checked one (scripts/sanitize) shows those of compiled functions too, but
for functions without the GIL: what they do for each message is what they are for.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections import Counter
from types import FrameType

import pytest

from shardserver.memory.heap import heap_arena
from shardserver.net.known_routes import Route
from shardserver.net.plane import Plane, PlaneConnection
from shardserver.protocol.frame import Frame, encode_request
from shardserver.protocol.messages import SendReply, SendRequest
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import LogSettings, PartitionIdentity
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import ticking_clock

SETTINGS = LogSettings(journal_file_bytes=2 << 20, journal_files=3)
CHECKED = os.environ.get("SHARDSERVER_CHECKED") == "1"
WARM = 3  # sends before the one that is looked at: what is made once has been made


def send_frame(number: int, messages: int) -> bytes:
    batch = bytes(make_batch([b"x" * 20] * messages))
    body = SendRequest(1, "t", 2, bytes(4), messages, batch).encode()
    return encode_request(160, 0, body, client=b"\5" + bytes(15), request=number, session=1)


class Owner:
    """Knows the way of every send."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def find_route(self, key: bytes) -> Route:
        return self._route

    def note_local(self) -> None:
        return

    def on_change(self) -> None:
        raise AssertionError("there is no socket")

    def start(self, frame: Frame, reply: object) -> None:
        raise AssertionError("a send that has a route")


async def answered(wire: PlaneConnection, frame: bytes) -> bytes:
    wire.feed(frame)
    while not wire.unsent_bytes:
        await asyncio.sleep(0)
    return b"".join(wire.take_output())


async def calls_of_send(messages: int) -> Counter[str]:
    """Calls by the name of what is called, from the send to its reply; the loop's own and the disk's are left out."""
    source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0)])
    logs = await recover_shard(FaultDisk(1), "data", SETTINGS, source, ticking_clock(), lambda error: None)
    plane = Plane(heap_arena(1 << 22), int, 1 << 20)
    wire = PlaneConnection(plane, Owner(Route(logs.partition(1), 1, 1, 0, 0)), 1 << 20, 1 << 20)
    for number in range(WARM):
        await answered(wire, send_frame(number, messages))
    frame, seen = send_frame(WARM, messages), Counter[str]()

    def note(at: FrameType, event: str, argument: object) -> None:
        if event == "call" and "shardserver" in at.f_code.co_filename and "/tests/" not in at.f_code.co_filename:
            seen[at.f_code.co_name] += 1

    gc.collect()
    gc.disable()  # what the world of before leaves behind makes calls, too
    sys.setprofile(note)
    try:
        reply = await answered(wire, frame)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert SendReply.decode(memoryview(reply)[256:]).confirmations[0].base_offset == WARM * messages
    await logs.close()
    wire.close("")
    plane.close()
    return seen


def test_a_send_makes_as_many_calls_for_a_thousand_messages_as_for_one() -> None:
    one, thousand = (asyncio.run(calls_of_send(messages)) for messages in (1, 1000))
    assert one == thousand and one.total() > 0


@pytest.mark.skipif(not CHECKED, reason="a plain build is invisible; scripts/sanitize makes the other")
def test_the_calls_of_the_compiled_path_are_among_them() -> None:
    seen = asyncio.run(calls_of_send(1000))
    assert {"start_send", "hand_over", "take_bytes", "push", "confirm", "write_reply"} <= set(seen)
