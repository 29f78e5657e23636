"""A server on a small ext4 image that fills up: refusals (4006), reads, a start without a free byte, room again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_iggy import Consumer, IggyClient, PollingStrategy, SendMessage

from tests.end_to_end.test_sdk import connect
from tests.powercut.image import Image, ImageError
from tests.server_process import ServerProcess

IMAGE_BYTES = 96 << 20
CONFIG = """
[journal]
file_bytes = 2097152
files = 4
[storage]
low_watermark_bytes = {low}
reserve_bytes = 8388608
retention_interval_s = 1
"""
PAYLOAD = "x" * 400_000


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    image = Image(tmp_path / "image", tmp_path / "mounted", IMAGE_BYTES)
    try:
        image.create()
        image.mount()
    except (ImageError, FileNotFoundError) as error:
        pytest.skip(f"no loop mount: {error}")
    yield image.directory
    image.unmount()


@pytest.fixture
def server(tmp_path: Path, mounted: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(mounted / "data", "--config", str(tmp_path / "config.toml"))
    yield made
    made.kill()


def start(server: ServerProcess, tmp_path: Path, low: int = 0) -> str:
    (tmp_path / "config.toml").write_text(CONFIG.format(low=low))
    server.start()
    return str(server.wait_ready()["tcp"])


async def send_until_refused(client: IggyClient) -> tuple[int, str]:
    """How many were acknowledged, and what refused the next one."""
    for number in range(10_000):
        try:
            await client.send_messages("orders", "big", 0, [SendMessage(f"{number} {PAYLOAD}")])
        except Exception as error:
            return number, str(error)
    raise AssertionError("the disk never filled up")


async def numbers(client: IggyClient) -> list[int]:
    found: list[int] = []
    while True:
        messages = await client.poll_messages(
            "orders", "big", consumer=Consumer.Single(1), polling_strategy=PollingStrategy.Offset(len(found)),
            count=20, auto_commit=False,
        )  # fmt: skip
        if not messages:
            return found
        found += [int(message.payload().split(b" ")[0]) for message in messages]


async def create(address: str) -> IggyClient:
    client = await connect(address)
    await client.create_stream("orders")
    await client.create_topic("orders", "big", partitions_count=1)
    return client


def fill_up(path: Path) -> None:
    """Take the last free byte, also of what a filesystem keeps for root."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_disk_that_fills_up_in_the_middle_refuses_and_recovers(
    server: ServerProcess, mounted: Path, tmp_path: Path
) -> None:
    async def fill(address: str) -> int:
        client = await create(address)
        sent, refusal = await send_until_refused(client)
        assert refusal == "Cannot save messages to segment."  # the SDK's text of 4006
        assert await numbers(client) == list(range(sent))
        return sent

    sent = asyncio.run(fill(start(server, tmp_path)))
    assert sent > 20
    server.kill()
    fill_up(mounted / "somebody's file")

    async def look_and_purge(address: str) -> None:
        client = await connect(address)
        assert await numbers(client) == list(range(sent))
        await client.purge_topic("orders", "big")
        for _ in range(100):
            with contextlib.suppress(Exception):
                await client.send_messages("orders", "big", 0, [SendMessage("0 again")])
                break
            await asyncio.sleep(0.1)
        assert await numbers(client) == [0]

    asyncio.run(look_and_purge(start(server, tmp_path)))
    assert server.stop() == 0


def test_below_the_low_watermark_sends_are_refused_and_resume_by_themselves(
    server: ServerProcess, mounted: Path, tmp_path: Path
) -> None:
    address = start(server, tmp_path, low=16 << 20)
    ballast = mounted / "ballast"

    async def run() -> None:
        client = await create(address)
        await client.send_messages("orders", "big", 0, [SendMessage("0")])
        figures = os.statvfs(mounted)
        ballast.write_bytes(bytes(figures.f_bavail * figures.f_frsize - (10 << 20)))
        await asyncio.sleep(1.5)
        with pytest.raises(Exception, match="Cannot save messages"):
            await client.send_messages("orders", "big", 0, [SendMessage("1")])
        assert await numbers(client) == [0]
        ballast.unlink()
        await asyncio.sleep(1.5)
        await client.send_messages("orders", "big", 0, [SendMessage("1")])
        assert await numbers(client) == [0, 1]

    asyncio.run(run())
    assert server.stop() == 0
