"""A damaged directory of a real server taken through verify, repair, start and polls of the unmodified SDK."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apache_iggy import Consumer, IggyClient, PollingStrategy, SendMessage

from shardserver.cli.main import main
from shardserver.storage import journal_format as fmt
from tests.sdk_client import connect
from tests.server_process import PASSWORD, ServerProcess

CONFIG = "[journal]\nfiles = 4\nfile_bytes = 2097152\n[storage]\nreserve_bytes = 0\n"
SENDS = 30
OnStopped = Callable[..., tuple[int, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "server.toml").write_text(CONFIG)
    made = ServerProcess(tmp_path / "data", "--cores", "2", "--config", str(tmp_path / "server.toml"))
    yield made
    made.kill()


@pytest.fixture
def on_stopped(server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> OnStopped:
    """Exit code and all that was printed by a command on the server's directory."""
    monkeypatch.setenv("SHARDSERVER_ROOT_PASSWORD", PASSWORD)

    def run(*arguments: str) -> tuple[int, str]:
        code = main([*arguments, "--data", str(server.data)])
        return code, "".join(capsys.readouterr())

    return run


async def send(client: IggyClient, first: int, count: int) -> None:
    for number in range(first, first + count):
        for partition in (0, 1):
            await client.send_messages("orders", "new", partition, [SendMessage(f"{number} ".ljust(1000, "x"))])


async def poll(client: IggyClient, partition: int) -> list[int]:
    """Numbers of all messages, over holes."""
    found, due = [], 0
    while True:
        messages = await client.poll_messages(
            "orders", "new", consumer=Consumer.Single(1), polling_strategy=PollingStrategy.Offset(due), count=20,
            auto_commit=False, partition_id=partition,
        )  # fmt: skip
        if not messages:
            return found
        found += [int(bytes(message.payload()).split()[0]) for message in messages]
        due = messages[-1].offset() + 1


async def make(address: str) -> None:
    client = await connect(address)
    await client.create_stream("orders")
    await client.create_topic("orders", "new", 2)
    await send(client, 0, SENDS)


async def served(address: str) -> list[list[int]]:
    """What both partitions hold; then they take more."""
    client = await connect(address)
    found = [await poll(client, partition) for partition in (0, 1)]
    await send(client, 1000, 1)
    assert [await poll(client, partition) for partition in (0, 1)] == [[*one, 1000] for one in found]
    return found


def start(server: ServerProcess) -> str:
    server.start()
    return str(server.wait_ready()["tcp"])


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def damage_segment(server: ServerProcess, number: int) -> tuple[Path, int]:
    """A bit in the payload of a message of one partition; gives the path and where its batch begins."""
    file = min((server.data / "partitions").glob("*/*.log"))
    position = file.read_bytes().index(f"{number} ".ljust(1000, "x").encode())
    flip(file, position + 500)
    return file.relative_to(server.data), position - 48 - 256


def damage_journal(server: ServerProcess) -> None:
    """A bit in the first write of the newest file of shard 0."""
    newest = (0, Path())
    for file in (server.data / "shards" / "0" / "journal").iterdir():
        write = fmt.decode_write(memoryview(file.read_bytes())[4096 : 4096 + fmt.MAX_WRITE_BYTES])
        newest = max(newest, (write.sequence if write is not None else 0, file))
    flip(newest[1], 4096 + 130)


def test_a_damaged_directory_is_repaired_and_serves_the_rest(server: ServerProcess, on_stopped: OnStopped) -> None:
    asyncio.run(make(start(server)))
    code, said = on_stopped("verify")
    assert code == 2 and "in use by the server with process id" in said
    assert server.stop() == 0
    assert on_stopped("verify") == (0, "clean\n")
    path, position = damage_segment(server, 7)
    damage_journal(server)

    code, said = on_stopped("verify")
    assert code == 1 and f"damage segment {path} at byte {position}: no valid batch with offset 7;" in said
    assert "damage journal shards/0/journal/" in said
    code, said = on_stopped("repair", "--dry-run")
    assert code == 1 and "would take the damage out of partition" in said
    code, said = on_stopped("repair")
    assert code == 0 and "kept in " in said, said
    assert on_stopped("verify")[0] == 0

    found = sorted(asyncio.run(served(start(server))), key=len)
    assert found == [[one for one in range(SENDS) if one != 7], list(range(SENDS))]
    assert server.stop() == 0 and on_stopped("verify") == (0, "clean\n")


def test_a_killed_server_without_its_metadata_gets_it_back(server: ServerProcess, on_stopped: OnStopped) -> None:
    asyncio.run(make(start(server)))
    assert server.stop() == 0  # so that both partitions have a directory
    address = start(server)
    asyncio.run(_more(address))
    server.kill()
    shutil.rmtree(server.data / "metadata")
    assert on_stopped("verify")[0] == 1
    code, said = on_stopped("rebuild-metadata")
    assert code == 0 and "1 streams, 1 topics, 2 partitions, 1 users" in said
    assert on_stopped("reset-root-password")[0] == 0
    assert on_stopped("verify")[0] == 0
    assert asyncio.run(served(start(server))) == [[*range(SENDS), 500], [*range(SENDS), 500]]


async def _more(address: str) -> None:
    await send(await connect(address), 500, 1)
