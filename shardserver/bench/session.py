"""One topic of a server under measurement: made, filled, loaded as often as wanted, read back, deleted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from shardserver.bench.group import Report, run_spec
from shardserver.bench.outcome import Acknowledged, Outcome
from shardserver.bench.own_server import OwnServer
from shardserver.bench.peers import Peer
from shardserver.bench.plan import STREAM, TOPIC, USERNAME, LoadSpec, polls_over, prefill_spec
from shardserver.bench.progress import no_progress
from shardserver.bench.verify import find_faults
from shardserver.client.connection import Connection
from shardserver.protocol.options import OptionValue

DURABILITY_OPTION = {"fsync": "persisted", "write": "write", "memory": "memory"}
# Under `memory` the journal follows within a second (docs/durability.md); until then a kill takes what was answered.
MEMORY_SETTLES_S = 3.0
PARTITIONS_A_REQUEST = 1000


@dataclass
class Session:
    """Everything acknowledged in all its loads is added up, so that one read-back covers them."""

    peer: Peer
    durability: str
    cores: Sequence[int]
    processes: int = 0
    stream: str = STREAM
    acknowledged: Acknowledged = field(default_factory=lambda: Acknowledged.none(0))
    _numbers: int = 1

    @property
    def durability_option(self) -> dict[str, OptionValue]:
        return {"durability": DURABILITY_OPTION[self.durability]}

    def create(self, partitions: int, **options: OptionValue) -> None:
        """options: of the topic, beside its durability."""
        made = self.durability_option | options
        with self.connect() as connection:
            connection.create_stream(self.stream)
            connection.create_topic(self.stream, TOPIC, min(partitions, PARTITIONS_A_REQUEST), made)
            for first in range(PARTITIONS_A_REQUEST, partitions, PARTITIONS_A_REQUEST):
                connection.create_partitions(self.stream, TOPIC, min(partitions - first, PARTITIONS_A_REQUEST))
        self.acknowledged = Acknowledged.none(partitions)

    def delete(self) -> None:
        with self.connect() as connection:
            connection.delete_stream(self.stream)

    def fill(self, spec: LoadSpec, total_bytes: int) -> LoadSpec:
        """Sends so much to the partitions of `spec`; gives its polls, going round over that."""
        filling = prefill_spec(spec.shape, spec.partitions, total_bytes)
        self.run(filling)
        return polls_over(spec, filling)

    def run(
        self, spec: LoadSpec, *, warmup_s: float = 0.0, seconds: float = 0.0, report: Report = no_progress
    ) -> Outcome:
        outcome = run_spec(
            replace(spec, stream=self.stream),
            self.peer,
            self.cores,
            processes=self.processes,
            warmup_s=warmup_s,
            seconds=seconds,
            first_number=self._numbers,
            report=report,
        )
        self._numbers += spec.connections
        self.acknowledged.merge(outcome.acknowledged)
        return outcome

    def kill_and_restart(self, server: OwnServer) -> None:
        """kill -9 of all, with nothing unanswered; then the server starts again on its directory."""
        if self.durability == "memory":
            time.sleep(MEMORY_SETTLES_S)
        server.kill()
        self.peer = server.start()

    def faults(self, spec: LoadSpec) -> list[str]:
        """Reads everything back; empty when it is all there, in order, once."""
        with self.connect() as connection:
            return find_faults(connection, self.acknowledged, spec.shape, self.stream)

    def counts(self) -> tuple[int, int]:
        """Messages acknowledged, and what the topic itself reports."""
        with self.connect() as connection:
            return self.acknowledged.total, connection.topic_message_count(self.stream, TOPIC)

    def connect(self, username: str | None = None, password: str | None = None) -> Connection:
        """A connection of the caller's, logged in; without a name as root."""
        connection = Connection(self.peer.host, self.peer.port)
        secret = self.peer.password if password is None else password
        try:
            assert secret is not None
            connection.login(username or USERNAME, secret)
        except BaseException:
            connection.close()
            raise
        return connection
