"""The supervisor: spawns the shards, joins and watches them, restarts them, answers the control socket, ends it all."""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from shardserver.config import Config
from shardserver.errors import ConfigError
from shardserver.io_uring.choose import check_disk
from shardserver.supervisor import logs
from shardserver.supervisor.control import ControlServer, listen_control
from shardserver.supervisor.cores import CoreChoice, choose_accepting
from shardserver.supervisor.data_directory import DataDirectory
from shardserver.supervisor.mesh import Mesh
from shardserver.supervisor.messages import OF_ALL_SHARDS, OF_SHARD_0, Request
from shardserver.supervisor.queries import Reply
from shardserver.supervisor.reload import Reloader
from shardserver.supervisor.server_state import is_degraded, recovery_of, shown_state, state_of
from shardserver.supervisor.shard_exit import ShardExit
from shardserver.supervisor.shard_handle import ShardHandle, ShardPlan
from shardserver.supervisor.shard_process import ShardArguments, run_shard_process
from shardserver.supervisor.sockets import listen, shown_address
from shardserver.supervisor.stall_watch import Silence, StallWatch
from shardserver.supervisor.stop_signals import StopSignals, reap_orphans
from shardserver.supervisor.storage_probe import log_storage

log = logging.getLogger(__name__)

# What the supervisor adds to the shard's own deadline before it is killed.
KILL_MARGIN_S = 0.8
# A cpuset changes when an operator changes it; half a minute off the core costs little, and so does a look.
AFFINITY_CHECK_S = 30.0
# Until the kernel is offered descriptors again that it did not take.
HELD_UP_S = 0.02


class Supervisor:
    """Owns the listeners, so that a shard's death resets no queued connection."""

    def __init__(
        self,
        config: Config,
        data: DataDirectory,
        choice: CoreChoice,
        root_hash: str | None,
        signals: StopSignals,
        partition_limit: int,
        target: Callable[[ShardArguments], None] = run_shard_process,
        reloader: Reloader | None = None,
    ) -> None:
        """target: the entry of a shard's process. reloader: None: there is no file to read again."""
        self._config, self._data, self._choice, self._signals = config, data, choice, signals
        self._reloader = reloader
        check_disk(config.server.disk_engine, data.path)
        log_storage(data.path, data.run)
        accepting = sorted(choose_accepting(config.net.accept_shards, len(choice.cores)))
        self._listeners = dict(
            zip(accepting, listen(config.server.host, config.server.port, len(accepting)), strict=True)
        )
        listening = self._listeners[accepting[0]]
        self.address = shown_address(listening)
        port = int(listening.getsockname()[1])
        plan = ShardPlan(config, data.path, len(choice.cores), port, root_hash, partition_limit, target)
        self._shards = [
            ShardHandle(number, plan, self._listeners.get(number), core if config.server.pin == "on" else None)
            for number, core in enumerate(choice.cores)
        ]
        self._mesh = Mesh(config.router.ring_slots)
        self._is_open = False  # all have recovered: connections are accepted, also by a shard that comes back later
        self._has_been_ready = False
        self._published_state: dict[str, Any] = {}
        self._watched: dict[ShardHandle, int] = {}  # for what its link is
        self._stall_watch = StallWatch(
            config.server.stall_limit_s, config.server.recovery_stall_limit_s, time.monotonic()
        )
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
        self._watch_links()
        self._publish_state()
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
            due.append(self._stall_watch.next_look_at)
        if any(shard.link is not None and shard.link.is_held_up for shard in self._shards):
            due.append(now + HELD_UP_S)
        if self._config.server.pin == "on":
            due.append(self._affinity_check_at)
        moments = [moment for moment in due if moment is not None]
        return max(0.0, min(moments) - now) if moments else None

    def _on_time(self, now: float) -> None:
        self._control.end_slow_clients()
        for shard in self._shards:
            shard.end_late_queries()
            if shard.link is not None and shard.link.is_held_up:
                shard.link.flush()
        if self._stop_deadline is None and self._stall_watch.is_due(now):
            self._end_stalled()
        if now >= self._affinity_check_at:
            self._affinity_check_at = now + AFFINITY_CHECK_S
            self._keep_pinned()

    # Shards

    def _start_shards(self, now: float) -> None:
        for shard in self._shards:
            if shard.process is None and now >= shard.start_at:
                self._start(shard)

    def _start(self, shard: ShardHandle) -> None:
        try:
            shard.start(had_clients=self._is_open)
        except OSError as error:
            fields = {"shard": shard.number, "error": str(error), "restart_in_s": shard.restart_in_s}
            log.error("shard_not_started", extra={"fields": fields})
            return
        assert shard.process is not None
        self._selector.register(shard.process.sentinel, selectors.EVENT_READ, partial(self._on_exit, shard))

    def _watch_links(self) -> None:
        """For writing while lines wait; not while the kernel takes no descriptors, though the socket is writable."""
        for shard in self._shards:
            link, former = shard.link, self._watched.get(shard, 0)
            if link is None or shard.link_has_ended:
                continue
            wants_write = link.unsent_bytes and not link.is_held_up
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if wants_write else 0)
            if not former:
                self._selector.register(link, wanted, partial(self._on_link, shard))
            elif wanted != former:
                self._selector.modify(link, wanted, partial(self._on_link, shard))
            self._watched[shard] = wanted

    def _unwatch_link(self, shard: ShardHandle) -> None:
        if self._watched.pop(shard, 0):
            assert shard.link is not None
            self._selector.unregister(shard.link)

    def _on_link(self, shard: ShardHandle) -> None:
        assert shard.link is not None
        shard.link.flush()
        reached = shard.receive()
        if shard.link_has_ended:
            self._unwatch_link(shard)
        for state in reached:
            self._on_state(shard, state)

    def _on_state(self, shard: ShardHandle, state: str) -> None:
        if self._stop_deadline is not None:
            return
        if state == "recovering":
            self._mesh.join(shard)
        elif state == "recovered":
            self._open(shard)
        else:
            self._has_been_ready |= all(one.state == "ready" for one in self._shards)
            if self._has_been_ready:
                self._publish_ready()

    def _open(self, shard: ShardHandle) -> None:
        """The first time all shards have to have recovered: nobody then meets one that does not know its partitions."""
        if self._is_open:
            shard.serve()
        elif all(one.state == "recovered" for one in self._shards):
            self._is_open = True
            for one in self._shards:
                one.serve()

    def _end_stalled(self) -> None:
        for shard in self._shards:
            if shard.endpoint is None:
                continue
            is_ready = shard.state == "ready"
            if self._stall_watch.is_stalled(shard.silence, shard.endpoint.board.beats, is_ready=is_ready):
                fields = {"shard": shard.number, "pid": shard.pid, "state": shard.state}
                log.error("shard_stalled", extra={"fields": fields | {"silent_s": shard.silence.seconds}})
                shard.kill()
                shard.silence = Silence()  # one that hangs in the kernel dies late: no event for each look

    def _publish_ready(self) -> None:
        """Those that serve at this moment: all at first, and again whenever one has come back."""
        served = [shard for shard in self._shards if shard.state == "ready"]
        recovered = [shard.recovered for shard in served if shard.recovered is not None]
        content = {
            "tcp": self.address,
            "shards": [{"shard": one.number, "pid": one.pid, "core": one.core} for one in served],
            "supervisor_pid": os.getpid(),
            "disk_engine": recovered[0].disk_engine,
            "durability": self._config.server.durability,
        }
        if any(one.degraded for one in recovered):
            content["degraded"] = True
        self._publish_state()  # before: who sees ready.json may look at state.json next
        self._data.write_ready(content)
        limit = {"cores_allowed": len(self._choice.cores), "cores_decided_by": self._choice.decided_by}
        log.info("ready", extra={"fields": content | limit | {"shards_served": len(served)}})

    def _on_exit(self, shard: ShardHandle) -> None:
        assert shard.process is not None
        self._selector.unregister(shard.process.sentinel)
        self._unwatch_link(shard)
        shard.take_exit()
        self._mesh.part(shard)
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
        if changed and self._has_been_ready:
            self._publish_ready()

    def _kill(self) -> None:
        for shard in self._shards:
            if shard.process is not None:
                shard.kill()
                shard.take_exit()

    # Signals

    def _on_signal(self) -> None:
        arrived = self._signals.take()
        for _ in range(arrived.stops):
            self._stop()
        if arrived.reload:
            self._reload(lambda content: None)
        reap_orphans({shard.pid for shard in self._shards})

    def _stop(self) -> None:
        if self._stop_deadline is not None:
            log.warning("second_signal")
            self._exit_code, self._stop_deadline = 1, 0.0
            return
        self._stop_deadline = time.monotonic() + self._config.server.shutdown_deadline_s + KILL_MARGIN_S
        log.info("stopping")
        self._data.remove_ready()
        for (
            listener
        ) in self._listeners.values():  # the shards close theirs: only then does the kernel refuse connections
            listener.close()
        for shard in self._shards:
            shard.stop()

    # The control socket

    @property
    def state(self) -> str:
        return state_of(self._shards, is_stopping=self._stop_deadline is not None)

    def _on_request(self, request: Request, reply: Reply) -> None:
        if request.command == "status":
            reply(self._status())
        elif request.command == "reload":
            self._reload(reply)
        elif request.command in OF_ALL_SHARDS:
            self._gather(request, partial(self._tell_figures, reply))
        elif request.command in OF_SHARD_0:
            self._shards[0].ask(request.command, request.arguments, reply)
        else:
            reply({"error": f"unknown command {request.command!r}"})

    def _status(self) -> dict[str, Any]:
        answer = {
            "state": self.state,
            "degraded": is_degraded(self._shards),
            "tcp": self.address,
            "shards": [shard.status() for shard in self._shards],
        }
        return answer | ({"recovery": recovery_of(self._shards)} if self.state == "recovering" else {})

    def _publish_state(self) -> None:
        """For whoever cannot ask. Written when something in it has changed."""
        content = self._status()
        content["state"] = shown_state(content["state"], degraded=content.pop("degraded"))
        if content != self._published_state:
            self._published_state = content
            self._data.write_state(content | {"supervisor_pid": os.getpid()})

    def _reload(self, reply: Reply) -> None:
        """Answered when every shard that runs has applied it."""
        try:
            if self._reloader is None:
                raise ConfigError("the server was started without --config: there is no file to read again")
            if self._stop_deadline is not None:
                raise ConfigError("the server stops")
            reloaded = self._reloader.reload()
        except ConfigError as error:
            log.error("reload_refused", extra={"fields": {"error": str(error)}})
            reply({"error": str(error)})
            return
        self._config = reloaded.message.config
        logs.configure(self._config.log.level, self._config.log.format)
        log.warning("reloaded", extra={"fields": reloaded.told()})
        for shard in self._shards:
            shard.reconfigure(reloaded.message)
        # Their links keep the order: whoever answers has applied it. One that is down or starts has it from its plan.
        self._gather(Request("reload"), lambda answers: reply(reloaded.told()))

    def _tell_figures(self, reply: Reply, answers: list[dict[str, Any]]) -> None:
        reply({"restarts": sum(shard.restarts for shard in self._shards), "shards": answers})

    def _gather(self, request: Request, done: Callable[[list[dict[str, Any]]], None]) -> None:
        """Ask all shards; done gets their answers when each has answered or is known not to."""
        answers: dict[int, dict[str, Any]] = {}

        def on_answer(number: int, content: dict[str, Any]) -> None:
            answers[number] = content
            if len(answers) == len(self._shards):
                done([answers[key] for key in sorted(answers)])

        for shard in self._shards:
            shard.ask(request.command, request.arguments, partial(on_answer, shard.number))
