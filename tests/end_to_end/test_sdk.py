"""The unmodified Apache Iggy 0.9 SDK against a real server."""

import asyncio
import signal
from pathlib import Path

import pytest
from apache_iggy import Consumer, IggyClient, PollingStrategy, SendMessage

from tests.server_process import PASSWORD, ServerProcess


@pytest.fixture
def server(tmp_path: Path):
    made = ServerProcess(tmp_path / "data")
    made.start()
    yield made
    made.kill()


async def connect(address: object) -> IggyClient:
    client = IggyClient(str(address))
    await client.connect()
    await client.login_user("iggy", PASSWORD)
    return client


async def payloads(client: IggyClient, strategy: PollingStrategy, count: int = 1000, **more: object) -> list[str]:
    wanted = {"consumer": Consumer.Single("reader"), "polling_strategy": strategy, "count": count, "auto_commit": False}
    found = await client.poll_messages("orders", "new", **(wanted | more))
    return [message.payload().decode() for message in found]


async def fill(address: object, batches: int = 3) -> list[str]:
    client = await connect(address)
    await client.create_stream("orders")
    await client.create_topic("orders", "new", partitions_count=2)
    for batch in range(batches):
        await client.send_messages("orders", "new", 0, [SendMessage(f"{batch}/{n}") for n in range(4)])
    return [f"{batch}/{n}" for batch in range(batches) for n in range(4)]


async def read(address: object) -> list[str]:
    return await payloads(await connect(address), PollingStrategy.First())


def test_every_polling_strategy_gives_its_messages(server: ServerProcess) -> None:
    async def run(address: object) -> None:
        sent = await fill(address)
        client = await connect(address)
        assert await payloads(client, PollingStrategy.First()) == sent
        assert await payloads(client, PollingStrategy.Offset(5), 3) == sent[5:8]
        assert await payloads(client, PollingStrategy.Last(), 2) == sent[-2:]
        assert await payloads(client, PollingStrategy.Timestamp(0)) == sent
        assert await payloads(client, PollingStrategy.Next(), 5, auto_commit=True) == sent[:5]
        assert await payloads(client, PollingStrategy.Next(), 5) == sent[5:10]
        assert await payloads(client, PollingStrategy.First(), partition_id=1) == []

    asyncio.run(run(server.wait_ready()["tcp"]))


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_acknowledged_messages_are_there_after_the_server_ended(server: ServerProcess, ending: signal.Signals) -> None:
    sent = asyncio.run(fill(server.wait_ready()["tcp"]))
    server.signal(ending)
    code, _ = server.wait()
    assert code == (0 if ending is signal.SIGTERM else -signal.SIGKILL)
    server.start()
    assert asyncio.run(read(server.wait_ready()["tcp"])) == sent


def test_a_dead_shard_is_restarted_and_has_everything(server: ServerProcess) -> None:
    ready = server.wait_ready()
    sent = asyncio.run(fill(ready["tcp"]))
    import os

    pid = ready["shards"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    again = server.wait_ready(other_than=pid)
    assert again["tcp"] == ready["tcp"]
    assert asyncio.run(read(again["tcp"])) == sent
    assert server.stop() == 0
    assert not (server.data / "run" / "ready.json").exists()


def test_a_second_server_on_the_directory_or_the_port_refuses_with_a_sentence(
    server: ServerProcess, tmp_path: Path
) -> None:
    ready = server.wait_ready()
    same_data = ServerProcess(server.data)
    same_data._process = None
    same_port = ServerProcess(tmp_path / "other")
    same_port.start(port=str(ready["tcp"]).rsplit(":", 1)[1])
    code, printed = same_port.wait()
    assert code == 1 and "in use by another process" in printed
    import subprocess
    import sys

    second = subprocess.run(
        [sys.executable, "-m", "shardserver", "--data", str(server.data), "--port", "0"], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert f"in use by the server with process id {ready['supervisor_pid']}" in second.stderr
    assert server.stop() == 0


def test_purged_and_deleted_data_does_not_come_back(server: ServerProcess) -> None:
    address = server.wait_ready()["tcp"]

    async def purge() -> list[str]:
        await fill(address)
        client = await connect(address)
        await client.purge_topic("orders", "new")
        await client.send_messages("orders", "new", 0, [SendMessage("after")])
        return await payloads(client, PollingStrategy.First())

    assert asyncio.run(purge()) == ["after"]
    server.kill()
    server.start()
    assert asyncio.run(read(server.wait_ready()["tcp"])) == ["after"]


def test_large_batches_are_served_from_segments_after_a_restart(server: ServerProcess) -> None:
    sent = ["x" * 700_000 + str(n) for n in range(6)]

    async def send(address: object) -> None:
        client = await connect(address)
        await client.create_stream("orders")
        await client.create_topic("orders", "new", partitions_count=1)
        for one in sent:
            await client.send_messages("orders", "new", 0, [SendMessage(one)])
            await client.send_messages("orders", "new", 0, [SendMessage("small")])

    asyncio.run(send(server.wait_ready()["tcp"]))
    server.kill()
    server.start()
    found = asyncio.run(read(server.wait_ready()["tcp"]))
    assert found == [text for one in sent for text in (one, "small")]
