from shardserver.net.poll_route import PollRoute
from shardserver.net.route_table import RouteTable
from shardserver.protocol.sends import Target

class Route:
    uid: int
    target: Target
    crosses_to: int
    def __init__(
        self, target: Target, uid: int, stream_id: int, topic_id: int, partition_id: int, crosses_to: int = -1
    ) -> None: ...
    def take_load(self) -> tuple[int, int]: ...

class KnownRoutes:
    shared_sends: RouteTable[Route]
    shared_polls: RouteTable[PollRoute]
    def forget(self) -> None: ...
