"""What real SDKs sent to another server, sent to ours: each field of the answers is the recorded one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardserver.errors import ShardServerError
from tests.conformance.site import LAYOUTS, name_layout
from tests.conformance.tap import Results, Tap, codes_by_command
from tests.conformance.vector_replay import VectorReplay
from tests.protocol.test_vectors import PAIRS
from tests.sharded_server import ShardedServer

# Replies that were scripted, or (028, 029) not stored by the recorder, sends included: they test codecs only.
SCRIPTED = ("028", "029", "045", "063", "070", "078", "081")
# 088 was refused by a server of another protocol version; ours is that of the client. Of delete_segments one recorder
# answered with its own operation, which clients take for a success whatever it says (framing 4).
OTHERS = ("088", "node-11")
PYTHON = [name for name in PAIRS if name[:3].isdigit() and not name.startswith((*SCRIPTED, *OTHERS))]
NODE = [name for name in PAIRS if name.startswith("node") and not name.startswith(OTHERS)]


@pytest.fixture(scope="module", params=LAYOUTS, ids=name_layout)
def replays(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The differences of each vector, by its name."""
    cores, handover = request.param
    config = f"[net]\nhandover_requests = {handover}\n"
    found: dict[str, Any] = {}
    for recorder, names in ("python", PYTHON), ("node", NODE):
        answered: dict[str, dict[str, Any]] = {}
        directory: Path = tmp_path_factory.mktemp("replay")
        server = ShardedServer(directory, cores=cores, config=config, password="iggy").serve()
        tap = Tap(lambda: server.address)  # noqa: B023  # closed before the next turn
        replay = VectorReplay(tap.address)
        try:
            for name in names:
                found[name] = answered_otherwise(replay, name)
                row = {"shards": cores, "hand-over": handover > 0, "passed": not found[name]}
                log = tap.take_log()
                answered[f"{name} {cores} {handover}"] = row | {"commands": codes_by_command(log)}
        finally:
            replay.close()
            tap.close()
            server.kill()
        Results(f"vectors-{recorder}").add(answered)
    yield found


def answered_otherwise(replay: VectorReplay, name: str) -> dict[str, Any]:
    """Also when there was no answer, so that the vectors after it are still asked."""
    try:
        return replay.differences(PAIRS[name])
    except (OSError, EOFError, KeyError, ValueError, ShardServerError) as error:
        return {"error": repr(error)}


@pytest.mark.parametrize("name", PYTHON + NODE)
def test_the_answer_is_the_recorded_one(name: str, replays: dict[str, Any]) -> None:
    assert replays[name] == {}
