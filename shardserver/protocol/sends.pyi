from collections.abc import Callable

from shardserver.errors import ShardServerError
from shardserver.memory.arena import Arena, Block
from shardserver.memory.buffers import Buffer

SendDone = Callable[[int | ShardServerError], None]

class Waiter: ...

class CallbackWaiter(Waiter):
    def __init__(self, done: SendDone) -> None: ...

class Target:
    def send(self, batch: Block, count: int, done: SendDone) -> None: ...
    def send_bytes(self, arena: Arena, batch: Buffer, count: int, done: SendDone) -> None: ...

class CallbackTarget(Target):
    def __init__(self, append: Callable[[Block, int, SendDone], None]) -> None: ...
