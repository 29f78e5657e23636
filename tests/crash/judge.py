"""What was acknowledged beside what is there. *Lost*: acknowledged, not found. *Doubled*: one attempt found twice."""

from __future__ import annotations

from dataclasses import dataclass

from tests.crash.load import PARTITIONS, STREAM, TOPIC, Load
from tests.sdk_client import connect, payloads


@dataclass(frozen=True)
class Verdict:
    """disordered: producers whose acknowledged messages are in another order than they were sent in."""

    lost: int
    doubled: int
    disordered: int

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.disordered)


async def read_all(address: str) -> list[list[int]]:
    """The attempts found in each partition, by offset."""
    client = await connect(address)
    found: list[list[int]] = []
    for partition in range(PARTITIONS):
        found.append([int(one.split(b" ")[0]) async for one in payloads(client, STREAM, TOPIC, partition)])
    return found


def judge(load: Load, found: list[list[int]]) -> Verdict:
    lost = doubled = disordered = 0
    places = [{number: offset for offset, number in enumerate(there)} for there in found]
    for there, place in zip(found, places, strict=True):
        doubled += len(there) - len(place)
    for producer in load.producers:
        place = places[producer.partition]
        offsets = [place[number] for number in producer.acknowledged if number in place]
        lost += len(producer.acknowledged) - len(offsets)
        disordered += offsets != sorted(offsets)
    return Verdict(lost, doubled, disordered)
