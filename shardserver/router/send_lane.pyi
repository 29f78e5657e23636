from collections.abc import Callable, Sized
from typing import Any

from shardserver.memory.arena import Arena, Block
from shardserver.protocol.sends import SendDone, Target
from shardserver.router.ring import Consumer, Producer
from shardserver.router.send_lane_python import SendOtherwise, SentRecord

class Floor:
    offset: int
    def __init__(self, offset: int = 0) -> None: ...

class RemotePartition(Target):
    uid: int
    floor: Floor
    unanswered: list[Any]
    def __init__(
        self, lane: SendLane, uid: int, floor: Floor, unanswered: list[Any], send_otherwise: SendOtherwise
    ) -> None: ...
    def send(self, batch: Block, count: int, done: SendDone) -> None: ...

class SendLane:
    find_target: Callable[[int], Target | None] | None
    is_serving: bool
    is_publish_due: bool
    last_number: int
    slots_sent: int
    slots_taken: int
    out: int
    def __init__(
        self, arena: Arena, peer: Any, asked: set[int], waiting_requests: Sized, waiting_answers: Sized
    ) -> None: ...
    def attach(self, producer: Producer, consumer: Consumer, shown: Any) -> None: ...
    def detach(self) -> None: ...
    def take_sends(self, until: float) -> list[SentRecord]: ...
    def first_deadline(self) -> float | None: ...
    def drain(self, limit: int) -> int: ...
    def take_loads(self) -> list[tuple[int, int, int]]: ...
    def publish(self) -> bool: ...
