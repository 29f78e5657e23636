"""The supervisor: spawns the shards, watches them, restarts them, answers the control socket, ends it all."""

from __future__ import annotations

import logging
import os
import selectors
import time
from functools import partial
from typing import Any

from shardserver.config import Config
from shardserver.io_uring.choose import check_disk
from shardserver.supervisor.control import ControlServer, listen_control
from shardserver.supervisor.cores import CoreChoice
from shardserver.supervisor.data_directory import DataDirectory
from shardserver.supervisor.shard_exit import ShardExit
from shardserver.supervisor.shard_handle import Reply, ShardHandle
from shardserver.supervisor.sockets import listen, shown_address
from shardserver.supervisor.stop_signals import StopSignals, reap_orphans

log = logging.getLogger(__name__)

# What the supervisor adds to the shard's own deadline before it is killed.
KILL_MARGIN_S = 0.8
# A cpuset changes when an operator changes it; half a minute off the core costs little, and so does a look.
AFFINITY_CHECK_S = 30.0


class Supervisor:
    """Owns the listeners, so that a shard's death resets no queued connection."""

    def __init__(
        self, config: Config, data: DataDirectory, choice: CoreChoice, root_hash: str | None, signals: StopSignals
    ) -> None:
        self._config, self._data, self._choice, self._signals = config, data, choice, signals
        check_disk(config.server.disk_engine, data.path)
        cores = choice.cores[:1]  # this release serves one shard
        self._listeners = listen(config.server.host, config.server.port, len(cores))
        self.address = shown_address(self._listeners[0])
        pinned = config.server.pin == "on"
        self._shards = [
            ShardHandle(number, config, data.path, listener, core if pinned else None, root_hash)
            for number, (listener, core) in enumerate(zip(self._listeners, cores, strict=True))
        ]
        self._selector = selectors.DefaultSelector()
        self._control = ControlServer(
            listen_control(data.control_socket), self._selector, self._on_request, time.monotonic
        )
        self._selector.register(signals.readable, selectors.EVENT_READ, self._on_signal)
        self._stop_deadline: float | None = None
        self._affinity_check_at = time.monotonic() + AFFINITY_CHECK_S
        self._exit_code = 0

    def run(self) -> int:
        """Serve until a signal; gives the exit code."""
        reap_orphans(set())  # whoever ended before signals were caught
        try:
            while self._step():
                pass
        finally:
            self._kill()
            self._control.close()
            self._data.close()
        return self._exit_code

    def _step(self) -> bool:
        now = time.monotonic()
        if self._stop_deadline is None:
            self._start_shards(now)
        elif all(shard.process is None for shard in self._shards):
            return False
        elif now >= self._stop_deadline:
            log.error("not_stopped_in_time")
            self._exit_code = 1
            return False
        for key, _ in self._selector.select(self._timeout(now)):
            if self._selector.get_map().get(key.fd) is key:  # not ended by an earlier one of this round
                key.data()
        self._on_time(time.monotonic())
        return True

    def _timeout(self, now: float) -> float | None:
        """Seconds until something is due that no descriptor announces."""
        due = [self._stop_deadline, self._control.next_deadline(), *(one.next_deadline() for one in self._shards)]
        if self._stop_deadline is None:
            due += [shard.start_at for shard in self._shards if shard.process is None]
        if self._config.server.pin == "on":
            due.append(self._affinity_check_at)
        moments = [moment for moment in due if moment is not None]
        return max(0.0, min(moments) - now) if moments else None

    def _on_time(self, now: float) -> None:
        self._control.end_slow_clients()
        for shard in self._shards:
            shard.end_late_queries()
        if now >= self._affinity_check_at:
            self._affinity_check_at = now + AFFINITY_CHECK_S
            self._keep_pinned()

    # Shards

    def _start_shards(self, now: float) -> None:
        for shard in self._shards:
            if shard.process is None and now >= shard.start_at:
                shard.start()
                assert shard.process is not None
                self._selector.register(shard.link, selectors.EVENT_READ, partial(self._on_link, shard))
                self._selector.register(shard.process.sentinel, selectors.EVENT_READ, partial(self._on_exit, shard))

    def _on_link(self, shard: ShardHandle) -> None:
        assert shard.link is not None
        became_ready = shard.receive()
        if shard.link_has_ended:
            self._selector.unregister(shard.link)
        if became_ready and self._stop_deadline is None and all(one.ready for one in self._shards):
            self._publish_ready()

    def _publish_ready(self) -> None:
        served = [shard.ready for shard in self._shards if shard.ready]
        content = {
            "tcp": self.address,
            "shards": [{"shard": one.number, "pid": one.pid, "core": one.core} for one in self._shards],
            "supervisor_pid": os.getpid(),
            "disk_engine": served[0].disk_engine,
            "durability": self._config.server.durability,
        }
        if any(one.degraded for one in served):
            content["degraded"] = True
        self._data.write_ready(content)
        limit = {"cores_allowed": len(self._choice.cores), "cores_decided_by": self._choice.decided_by}
        log.info("ready", extra={"fields": content | limit | {"shards_served": len(self._shards)}})

    def _on_exit(self, shard: ShardHandle) -> None:
        assert shard.process is not None and shard.link is not None
        self._selector.unregister(shard.process.sentinel)
        if not shard.link_has_ended:
            self._selector.unregister(shard.link)
        shard.take_exit()
        reap_orphans({one.pid for one in self._shards})
        if self._stop_deadline is not None:
            self._exit_code = self._exit_code or int(shard.exit_code != 0)
            return
        if shard.exit_code == ShardExit.REFUSED and not shard.has_served:
            self._exit_code = 1  # what the start met, the next one would meet too: an operator has to look
            self._stop()
            return
        fields = {"shard": shard.number, "exit_code": shard.exit_code, "restart_in_s": shard.restart_in_s}
        log.error("shard_died", extra={"fields": fields})

    def _keep_pinned(self) -> None:
        changed = [shard for shard in self._shards if shard.keep_pinned()]
        for shard in changed:
            event = "pinned_again" if shard.core is not None else "pinning_refused"
            log.warning(event, extra={"fields": {"shard": shard.number, "core": shard.wanted_core}})
        if changed and all(one.ready for one in self._shards):
            self._publish_ready()

    def _kill(self) -> None:
        for shard in self._shards:
            if shard.process is not None:
                shard.kill()
                shard.take_exit()

    # Signals

    def _on_signal(self) -> None:
        for _ in range(self._signals.take()):
            self._stop()
        reap_orphans({shard.pid for shard in self._shards})

    def _stop(self) -> None:
        if self._stop_deadline is not None:
            log.warning("second_signal")
            self._exit_code, self._stop_deadline = 1, 0.0
            return
        self._stop_deadline = time.monotonic() + self._config.server.shutdown_deadline_s + KILL_MARGIN_S
        log.info("stopping")
        self._data.remove_ready()
        for listener in self._listeners:  # the shards close theirs: only then does the kernel refuse connections
            listener.close()
        for shard in self._shards:
            shard.stop()

    # The control socket

    @property
    def state(self) -> str:
        """stopping, or that of the shard that is least far."""
        states = [shard.state for shard in self._shards]
        order = ("starting", "recovering", "ready")
        ranks = [order.index(state) if state in order else 0 for state in states]
        return "stopping" if self._stop_deadline is not None else order[min(ranks)]

    def _on_request(self, command: str, reply: Reply) -> None:
        if command == "status":
            reply(self._status())
        elif command == "stats":
            self._gather(command, reply)
        else:
            reply({"error": f"unknown command {command!r}"})

    def _status(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "degraded": any(shard.ready is not None and shard.ready.degraded for shard in self._shards),
            "tcp": self.address,
            "shards": [shard.status() for shard in self._shards],
        }

    def _gather(self, command: str, reply: Reply) -> None:
        """Ask all shards; reply when each has answered or is known not to."""
        answers: dict[int, dict[str, Any]] = {}

        def on_answer(number: int, content: dict[str, Any]) -> None:
            answers[number] = content
            if len(answers) == len(self._shards):
                restarts = sum(shard.restarts for shard in self._shards)
                reply({"restarts": restarts, "shards": [answers[key] for key in sorted(answers)]})

        for shard in self._shards:
            shard.ask(command, partial(on_answer, shard.number))
