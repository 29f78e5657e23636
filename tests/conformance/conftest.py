"""Servers for the tests of clients, and a note of what each test exchanged with them.

CONFORMANCE=full adds 4 shards to what `make test` runs.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.site import FULL, LAYOUTS, QUICK, Site, TappedServer, name_layout
from tests.conformance.tap import Results, codes_by_command

TEST_TIMEOUT_S = 60
Servers = dict[tuple[int, int], TappedServer]
RESULTS = pytest.StashKey[dict[str, dict[str, dict[str, Any]]]]()  # client -> test -> row


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Started when first asked for, and kept to the end: a start costs more than most tests."""
    started: Servers = {}
    yield started
    for one in started.values():
        one.close()


@pytest.fixture(params=LAYOUTS, ids=name_layout)
def site(request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if request.param not in servers:
        servers[request.param] = TappedServer(tmp_path_factory.mktemp("site"), *request.param)
    tapped = servers[request.param]
    tapped.tap.take_log()
    yield Site(tapped)
    note(request, tapped)


@pytest.fixture(params=LAYOUTS if LAYOUTS == FULL else [QUICK[-1]], ids=name_layout)
def own_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a server of the test's own, that it may stop."""
    tapped = TappedServer(tmp_path_factory.mktemp("site"), *request.param)
    yield Site(tapped)
    note(request, tapped)
    tapped.close()


def note(request: pytest.FixtureRequest, tapped: TappedServer) -> None:
    assert tapped.tap.errors == []
    row = {
        "shards": tapped.cores,
        "hand-over": tapped.cores > 1 and tapped.handover_requests > 0,
        "passed": request.node.stash.get(PASSED, False),
        "commands": codes_by_command(tapped.tap.take_log()),
    }
    client = getattr(request.module, "RESULTS_OF", "python")
    request.config.stash.setdefault(RESULTS, {}).setdefault(client, {})[request.node.nodeid] = row


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    for client, rows in session.config.stash.get(RESULTS, {}).items():
        Results(client).add(rows)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    """Coroutines run in a loop of their own; the SDK has its own threads."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    called = pyfuncitem.obj(**arguments)
    if inspect.iscoroutine(called):
        asyncio.run(asyncio.wait_for(called, TEST_TIMEOUT_S))
    return True
