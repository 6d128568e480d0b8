"""Spreads shards over Ray workers.

One actor per slot, one whole shard in flight per actor; nothing but names and small reports travels. Ray restarts
and retries nothing: `ShardRun` owns every decision, and each way to fail has its own clear end.

Its session is in ray_session, its nodes in ray_nodes; what needs no Ray in shard_queue (which shard is next),
capacity (whether another worker is started), cluster, worker and worker_process, what becomes of a fault in faults.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.quick_imports import quick_imports
from cal_pipeline.runtime.capacity import Capacity
from cal_pipeline.runtime.cluster import Cluster, Listener, RunOutcome, WorkerState
from cal_pipeline.runtime.faults import RunAbortedError, fault_of
from cal_pipeline.runtime.ray_nodes import OwnNode, Room, accelerators, lost_nodes
from cal_pipeline.runtime.ray_notices import in_short
from cal_pipeline.runtime.shard_queue import ShardQueue
from cal_pipeline.runtime.worker import Outcome, WorkerSettings
from cal_pipeline.runtime.worker_process import last_words
from cal_pipeline.sources.shard import Shard
from cal_schemas.errors import STATUS_OK

_TICK_S = 0.5
_KILL_S = 2.0
_log = logging.getLogger(__name__)


@ray.remote(max_restarts=0, max_task_retries=0)
class _Actor:
    """Is a WorkerProcess, which is imported only here: nothing else has imported torch in this process."""

    def __init__(self, log_path: str) -> None:
        with quick_imports():
            from cal_pipeline.runtime.worker_process import WorkerProcess

        self._process = WorkerProcess(log_path)

    def where(self, on_gpu: bool) -> tuple[str, str, str]:
        """Names host and process, Ray's node, and the device."""
        from cal_pipeline.runtime.worker_process import device_name

        node = ray.get_runtime_context().get_node_id()
        return f"{platform.node()}, pid {os.getpid()}, node {node[:8]}", node, device_name(on_gpu)

    def start(self, settings: WorkerSettings) -> Outcome:
        return self._process.start(settings)

    def run(self, shard: Shard) -> Outcome:
        return self._process.run(shard)


@dataclass(kw_only=True, slots=True)
class _Slot:
    """One actor and what it is doing: placing -> starting -> idle <-> busy."""

    actor: Any
    log_path: Path
    state: str
    ref: Any
    began: float
    since: float
    shard: Shard | None = None
    where: str = "?"
    node: str = ""
    device: str = ""


class ShardRun:
    """Annotates shards; one that fails `max_tries` times is listed and the rest goes on.

    Writes into `outcome` as it goes, so that what was done is known also after an interruption. It is `aborted` when
    no worker can be placed within idle_timeout_s, starts fail as `Capacity` says, the Ray node of this program has
    died, or a worker reports that no shard can succeed (disk full, other columns).
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        settings: WorkerSettings,
        cluster: Cluster,
        listener: Listener,
        outcome: RunOutcome,
    ) -> None:
        self._queue = ShardQueue(shards, cluster.max_tries, outcome)
        self._settings, self._cluster, self._listener = settings, cluster, listener
        self._slots: list[_Slot] = []
        self._capacity = Capacity(cluster, outcome)
        self._room = Room(cluster)
        self._started = 0
        self._broken = False
        self._rows = self._rows_not_ok = 0
        self._last_alive = time.monotonic()
        self._own_node = OwnNode()
        self._outcome = outcome

    def run(self) -> None:
        """Returns when all is done or the run is aborted, with every worker ended."""
        try:
            self._loop()
        except RunAbortedError as error:
            self._outcome.aborted = str(error)
            # Without a worker that came up, or broke, there is nothing to look up in a log.
            self._outcome.refused = self._outcome.first_worker_at is None and not self._broken
        finally:
            self._stop_all()

    def _loop(self) -> None:
        while self._queue or self._count("busy"):
            self._fill_slots()
            self._hand_out()
            refs = {slot.ref: slot for slot in self._slots if slot.ref is not None}
            if refs:
                for ref in ray.wait(list(refs), timeout=_TICK_S)[0]:
                    self._resolve(refs[ref])
            else:
                time.sleep(_TICK_S)
            self._end_hung()
            self._queue.decide(lost_nodes)
            self._own_node.check()
            self._check_idle()
            self._outcome.at_work = self._at_work()
            self._listener.tick()

    def _at_work(self) -> list[WorkerState]:
        clock = time.time() - time.monotonic()
        return [
            WorkerState(
                where=slot.where,
                state=slot.state,
                since=clock + slot.since,
                shard=slot.shard.name if slot.shard else None,
            )
            for slot in self._slots
        ]

    def _stop_all(self) -> None:
        """Ends every worker; on return none of them writes any more, unless its node is out of reach."""
        for slot in self._slots:
            ray.kill(slot.actor, no_restart=True)
        if self._count("busy"):
            # A kill is a message. What a worker stages after the driver has cleared staging would stay behind.
            time.sleep(_KILL_S)
        self._slots = []
        self._own_node.close()

    def _count(self, *states: str) -> int:
        return sum(slot.state in states for slot in self._slots)

    def _wanted(self) -> int:
        """Counts the workers that there is work for."""
        return min(self._cluster.num_workers, self._count("busy") + len(self._queue))

    def _fill_slots(self) -> None:
        self._capacity.look(self._count("idle", "busy"), self._wanted())
        while len(self._slots) < self._wanted() and self._capacity.allows_start(self._count("placing", "starting")):
            self._started += 1
            now = time.monotonic()
            log_path = self._settings.store.logs / f"worker-{self._settings.store.run_id}-{self._started:03d}.log"
            actor = _Actor.options(  # type: ignore[attr-defined]
                num_gpus=self._cluster.gpus_per_worker, num_cpus=self._cluster.cpus_per_worker
            ).remote(str(log_path))
            self._slots.append(
                _Slot(
                    actor=actor,
                    log_path=log_path,
                    state="placing",
                    ref=actor.where.remote(self._cluster.gpus_per_worker > 0),
                    began=now,
                    since=now,
                )
            )

    def _hand_out(self) -> None:
        for slot in self._slots:
            if slot.state == "idle" and (shard := self._queue.take()):
                slot.shard, slot.state, slot.since = shard, "busy", time.monotonic()
                slot.ref = slot.actor.run.remote(shard)

    def _resolve(self, slot: _Slot) -> None:
        try:
            value = ray.get(slot.ref)
        except ray.exceptions.RayError as error:
            # The process or its node is gone (or out of reach, which must be treated as gone).
            reason = f"worker {slot.where} died: {in_short(error)}; {last_words(slot.log_path)}"
            self._lose(slot, reason, node_news_s=fault_of(error).node_news_s)
            return
        self._last_alive = time.monotonic()
        slot.since = self._last_alive
        if slot.state == "placing":
            slot.where, slot.node, slot.device = value
            if on_node := accelerators(slot.node):
                slot.device = f"{slot.device} (on a node with {on_node})"
            self._outcome.workers.append(slot.where)
            self._outcome.devices[slot.device] = self._outcome.devices.get(slot.device, 0) + 1
            slot.state, slot.ref = "starting", slot.actor.start.remote(self._settings)
        elif slot.state == "starting":
            if value.kind != "done":
                self._lose(slot, f"worker {slot.where} cannot start: {value.message}", refused=value.kind == "refuse")
                return
            self._capacity.came_up()
            if self._outcome.first_worker_at is None:
                self._outcome.first_worker_at = self._last_alive
            slot.state, slot.ref = "idle", None
        else:
            self._take(slot, value)

    def _take(self, slot: _Slot, outcome: Outcome) -> None:
        shard, slot.shard, slot.state, slot.ref = slot.shard, None, "idle", None
        assert shard is not None
        if outcome.kind == "stop":
            raise RunAbortedError(outcome.message)
        if outcome.report is None:
            self._queue.retry(shard, f"{outcome.message} (worker {slot.where})", surroundings=outcome.surroundings)
        else:
            outcome.report.worker, outcome.report.device = slot.where, slot.device
            self._outcome.reports.append(outcome.report)
            self._listener.finished(outcome.report)
            self._count_rows(outcome.report)

    def _count_rows(self, report: ShardReport) -> None:
        # Running sums: adding up all reports after each shard would take quadratic time.
        self._rows += report.rows
        self._rows_not_ok += report.rows - report.statuses.get(STATUS_OK, 0)
        if self._rows_not_ok > self._cluster.max_rows_not_ok:
            self._outcome.too_many_not_ok = f"{self._rows_not_ok} of {self._rows} rows so far are not ok"
            raise RunAbortedError(self._outcome.too_many_not_ok)

    def _lose(self, slot: _Slot, reason: str, *, node_news_s: float = 0.0, refused: bool = False) -> None:
        """Drops a dead or useless actor; its shard, if it had one, is tried again."""
        # With this program's own node everything on it ends: neither the shard nor the start is to blame.
        self._own_node.check(ask=True)
        ray.kill(slot.actor, no_restart=True)
        self._slots.remove(slot)
        if slot.shard is not None:
            self._queue.lost(slot.shard, slot.node, reason, node_news_s)
            self._queue.decide(lost_nodes)
            return
        self._last_alive = time.monotonic()  # It had its place.
        self._broken |= not refused
        # A process that died before its first line left no log; one on another node may have it there.
        there = self._broken and (slot.node or slot.log_path.exists())
        self._capacity.failed(
            reason,
            began=slot.began,
            up=self._count("idle", "busy"),
            coming=self._count("starting"),
            see=f"; see {slot.log_path}" if there else "",
        )

    def _end_hung(self) -> None:
        limits = {"busy": "shard_timeout_s", "starting": "start_timeout_s"}
        for slot in [slot for slot in self._slots if slot.state in limits]:
            limit = getattr(self._cluster, limits[slot.state])
            if time.monotonic() - slot.since > limit:
                self._lose(slot, f"worker {slot.where} gave no answer for {limit:g} s (--{limits[slot.state]})")

    def _check_idle(self) -> None:
        self._room.look([(slot.actor, slot.since) for slot in self._slots if slot.state == "placing"])
        if len(self._slots) > self._count("placing"):
            self._last_alive = time.monotonic()
        if time.monotonic() - self._last_alive <= self._cluster.idle_timeout_s:
            return
        raise RunAbortedError(f"no worker could be placed for {self._cluster.idle_timeout_s:g} s: {self._room}")
