"""The peer's own command line client (Rust SDK) against our server. `make conformance-rust` sets IGGY_CLI."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shardserver.errors import Code
from shardserver.protocol.table import Command
from tests.conformance.site import Site
from tests.server_process import PASSWORD

RESULTS_OF = "rust"
CLI = os.environ.get("IGGY_CLI", "")
TOKEN = re.compile(r"[A-Za-z0-9+/=_-]{40,}")
pytestmark = pytest.mark.skipif(not CLI, reason="IGGY_CLI is not set: make conformance-rust")
Run = Callable[..., str]


@pytest.fixture
def iggy(site: Site, tmp_path: Path) -> Run:
    """Runs the client with these words, and gives what it printed. Raises AssertionError: it ended with an error."""
    environment = os.environ | {"IGGY_HOME": str(tmp_path), "HOME": str(tmp_path)}

    def run(*words: str, login: tuple[str, ...] = ("-u", "iggy", "-p", PASSWORD), code: int = 0, text: str = "") -> str:
        command = [CLI, "--tcp-server-address", site.address, "--tcp-reconnection-max-retries", "0", *login, *words]
        seen = len(site.tap.log)
        done = subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=30, cwd=tmp_path
        )
        assert (done.returncode == 0) == (code == 0), f"{words}: {done.returncode}, {done.stdout}{done.stderr}"
        if code:
            assert code in [one.code for one in site.tap.log[seen:]], f"{words}: {site.tap.log[seen:]}"
        return done.stdout

    return run


def topic(site: Site, iggy: Run, partitions: int = 1) -> None:
    iggy("stream", "create", site.stream)
    iggy("topic", "create", site.stream, "t", str(partitions), "none")


def test_streams(site: Site, iggy: Run) -> None:
    iggy("stream", "create", site.stream)
    iggy("stream", "create", site.stream, code=Code.STREAM_NAME_ALREADY_EXISTS)
    assert site.stream in iggy("stream", "list")
    assert site.stream in iggy("stream", "get", site.stream)
    iggy("stream", "purge", site.stream)
    iggy("stream", "update", site.stream, site.stream + "2")
    iggy("stream", "delete", site.stream + "2")
    iggy("stream", "delete", site.stream, code=Code.STREAM_NOT_FOUND)


def test_topics_and_partitions(site: Site, iggy: Run) -> None:
    iggy("stream", "create", site.stream)
    iggy("topic", "create", site.stream, "t", "2", "gzip", "7days", "--max-topic-size", "10GiB")
    assert "gzip" in iggy("topic", "get", site.stream, "t")
    assert "7 days" in iggy("topic", "list", site.stream) or "7days" in iggy("topic", "list", site.stream)
    iggy("topic", "update", site.stream, "t", "u", "none")
    iggy("partition", "create", site.stream, "u", "2")
    iggy("partition", "delete", site.stream, "u", "1")
    iggy("topic", "purge", site.stream, "u")
    iggy("topic", "delete", site.stream, "u")
    iggy("topic", "delete", site.stream, "u", code=Code.TOPIC_NOT_FOUND)


def test_messages_and_offsets(site: Site, iggy: Run) -> None:
    topic(site, iggy, 2)
    iggy("message", "send", "-p", "1", "-H", "colour:string:red", site.stream, "t", "hello")
    iggy("message", "send", "-p", "1", site.stream, "t", text="from standard input\n")
    iggy("message", "send", "-m", "key", site.stream, "t", "keyed")
    found = iggy("message", "poll", "-f", "-m", "10", "-s", "-a", "-c", "5", site.stream, "t", "1")
    assert "hello" in found and "from standard input" in found and "red" in found
    assert "from standard input" in iggy("message", "poll", "-l", site.stream, "t", "1")
    iggy("message", "poll", "-n", site.stream, "t", "1")
    iggy("message", "poll", "-o", "1", site.stream, "t", "1")
    assert "1" in iggy("consumer-offset", "get", "5", site.stream, "t", "1")
    iggy("consumer-offset", "set", "5", site.stream, "t", "1", "0")
    iggy("consumer-offset", "set", "5", site.stream, "t", "1", "99", code=Code.INVALID_OFFSET)
    iggy("message", "flush", site.stream, "t", "1", code=Code.FEATURE_UNAVAILABLE)


def test_segments(site: Site, iggy: Run) -> None:
    topic(site, iggy)
    iggy("segment", "delete", site.stream, "t", "0", "1")
    iggy("segment", "delete", site.stream, "t", "9", "1", code=Code.PARTITION_NOT_FOUND)


def test_a_file_of_messages_goes_out_and_comes_back(site: Site, iggy: Run, tmp_path: Path) -> None:
    topic(site, iggy, 2)
    iggy("message", "send", "-p", "0", site.stream, "t", "one", "two")
    iggy("message", "poll", "-f", "-m", "2", "--output-file", str(tmp_path / "dump"), site.stream, "t", "0")
    iggy("message", "send", "-p", "1", "--input-file", str(tmp_path / "dump"), site.stream, "t")
    found = iggy("message", "poll", "-f", "-m", "2", site.stream, "t", "1")
    assert "one" in found and "two" in found


def test_the_server_and_its_clients(site: Site, iggy: Run, tmp_path: Path) -> None:
    iggy("ping", "-c", "2")
    assert "127.0.0.1" in iggy("me")
    assert "127.0.0.1" in iggy("client", "list")
    iggy("client", "get", "4294967280")
    assert "single-node" in iggy("cluster", "metadata")
    for form in "table", "json":
        iggy("stats", "-o", form)
    for scope in "topic", "stream", "user":
        iggy("options", scope)
    for compression in "stored", "deflated":
        directory = tmp_path / compression
        directory.mkdir()
        iggy("snapshot", "-c", compression, "-s", "all", "-o", str(directory))
        (archive,) = directory.glob("*.zip")
        assert zipfile.is_zipfile(archive)


def test_users_and_permissions(site: Site, iggy: Run) -> None:
    name = site.new_name("rust")
    iggy("user", "create", name, "s3cret99", "-g", "r_str", "-s", "2:r_str,p_msg#0:s_msg#1:s_msg,p_msg")
    iggy("user", "create", name, "s3cret99", code=Code.USER_ALREADY_EXISTS)
    login = ("-u", name, "-p", "s3cret99")
    iggy("stream", "list", login=login)
    iggy("user", "list", login=login, code=Code.UNAUTHORIZED)
    assert name in iggy("user", "get", name, login=login)
    iggy("user", "permissions", name)
    iggy("stream", "list", login=login, code=Code.UNAUTHORIZED)
    iggy("user", "password", name, "s3cret99", "s3cret98")
    iggy("user", "status", name, "inactive")
    iggy("user", "name", name, name + "2")
    assert name + "2" in iggy("user", "list")
    iggy("user", "delete", name + "2")
    iggy("user", "delete", "0", code=Code.CANNOT_DELETE_USER)


def test_personal_access_tokens(site: Site, iggy: Run) -> None:
    name = site.new_name("token")
    printed = iggy("pat", "create", name, "1day")
    found = TOKEN.search(printed)
    assert found, printed
    assert name in iggy("pat", "list", login=("-t", found[0]))
    iggy("pat", "create", name, code=Code.TOKEN_ALREADY_EXISTS)
    # Deleted here; then the client looks for a copy of its own in a keyring, which a machine without a desktop lacks.
    with contextlib.suppress(AssertionError):
        iggy("pat", "delete", name)
    assert site.exchanges(Command.DELETE_TOKEN)[-1].code == 0
    assert site.exchanges(Command.LOGIN_WITH_TOKEN)
    iggy("pat", "delete", name, code=Code.RESOURCE_NOT_FOUND)


def test_groups(site: Site, iggy: Run) -> None:
    topic(site, iggy)
    iggy("consumer-group", "create", site.stream, "t", "g")
    iggy("consumer-group", "create", site.stream, "t", "g", code=Code.GROUP_NAME_ALREADY_EXISTS)
    assert "g" in iggy("consumer-group", "get", site.stream, "t", "g")
    assert "g" in iggy("consumer-group", "list", site.stream, "t")
    iggy("consumer-group", "delete", site.stream, "t", "g")
    iggy("consumer-group", "delete", site.stream, "t", "g", code=Code.GROUP_NOT_FOUND)
