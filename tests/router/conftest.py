"""Peers on both forms of the lane of sends."""

from __future__ import annotations

import pytest

from shardserver.router import peer, send_lane, send_lane_python


@pytest.fixture(params=[pytest.param(send_lane, id="compiled"), pytest.param(send_lane_python, id="plain")])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "SendLane", request.param.SendLane)
