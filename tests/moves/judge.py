"""What producers sent beside what consumers got, and beside what is stored at the end: order and content of each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from tests.moves.load import STREAM, TOPIC, Load, Partition, payload_of
from tests.sdk_client import connect, payloads


@dataclass
class Verdict:
    """Messages. lost: acknowledged and not found. doubled: found twice. wrong: content, order or offset."""

    lost: int = 0
    doubled: int = 0
    wrong: int = 0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def __str__(self) -> str:
        return f"doubled {self.doubled}, lost {self.lost}, wrong {self.wrong}"

    def judge(self, acknowledged: list[int], found: list[bytes]) -> None:
        numbers = [int(one.split(b" ", 1)[0]) for one in found]
        self.lost += len(set(acknowledged) - set(numbers))
        self.doubled += len(numbers) - len(set(numbers))
        self.wrong += sum(one != payload_of(number).encode() for one, number in zip(found, numbers, strict=True))
        self.wrong += sum(later < earlier for earlier, later in pairwise(numbers))


async def judge(load: Load, address: str) -> tuple[Verdict, Verdict]:
    """Of what consumers got, and of what is stored."""
    received, stored = Verdict(), Verdict()
    client = await connect(address)
    for one in load.partitions:
        received.judge(one.acknowledged, [payload for _, payload in one.received])
        received.wrong += gaps(one)
        stored.judge(one.acknowledged, [payload async for payload in payloads(client, STREAM, TOPIC, one.number)])
    return received, stored


def gaps(partition: Partition) -> int:
    """Places where a consumer did not go on at the next offset."""
    return sum(offset != due for due, (offset, _) in enumerate(partition.received))
