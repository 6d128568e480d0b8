"""Asks Ray about its nodes: which are lost, what they hold, and whether this program's own still lives."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.state import actors

from cal_pipeline.runtime.cluster import Cluster
from cal_pipeline.runtime.faults import RunAbortedError

_ASK_EVERY_S = 10.0
_SAY_AFTER_S, _LOOK_EVERY_S = 15.0, 2.0
_log = logging.getLogger(__name__)


class OwnNode:
    """Is the Ray node that this program is attached to, on this machine.

    Once it has died, nothing that the program asks for is placed any more, whatever other nodes there are; some answers
    never come, and those that do blame workers. Ray ends a program whose cluster's head has died, but not this one.
    """

    def __init__(self) -> None:
        self._id = ray.get_runtime_context().get_node_id()
        self._asked = time.monotonic()
        path = next(node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == self._id)
        # The kernel closes a connection with the process at its other end, long before Ray has missed enough of the
        # node's health checks.
        self._raylet = socket.socket(socket.AF_UNIX)
        self._raylet.setblocking(False)
        self._connected = not self._raylet.connect_ex(path)

    def close(self) -> None:
        """Closes the connection to it."""
        self._raylet.close()

    def check(self, *, ask: bool = False) -> None:
        """Raises RunAbortedError when the node has died; Ray is asked every ten seconds, or now."""
        if ask or time.monotonic() - self._asked > _ASK_EVERY_S:
            self._asked = time.monotonic()
            gone = self._id in lost_nodes()
        else:
            gone = False
        if gone or (self._connected and self._hung_up()):
            raise RunAbortedError("the Ray node that this program is attached to has died")

    def _hung_up(self) -> bool:
        try:
            return not self._raylet.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


class Room:
    """Compares what a worker needs with what is free in the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        needs = {"GPU": cluster.gpus_per_worker, "CPU": cluster.cpus_per_worker}
        self._needs = {name: amount for name, amount in needs.items() if amount}
        self._num_workers = cluster.num_workers
        self._said = False
        self._looked = 0.0

    def __str__(self) -> str:
        there, free = ray.cluster_resources(), ray.available_resources()
        needs = " and ".join(f"{amount:g} {name}" for name, amount in self._needs.items())
        return (
            f"each needs {needs}; the cluster has {_amounts(there)}, of which free {_amounts(free)}. Lower "
            "--gpus_per_worker or --cpus_per_worker, or add nodes"
        )

    def look(self, placing: Sequence[tuple[Any, float]]) -> None:
        """Says in one line that workers wait for room, and when it is over.

        Takes the actors that have not yet answered, and since when (time.monotonic()).
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        late = [actor for actor, since in placing if now - since > _SAY_AFTER_S]
        waiting = sum(map(_waits, late))
        if waiting and not self._said:
            there, free = ray.cluster_resources(), ray.available_resources()
            scarce = [name for name, amount in self._needs.items() if free.get(name, 0) < amount] or [*self._needs]
            _log.warning(
                "waiting for %s: %d of %d workers are not placed (the cluster has %s)",
                " and for ".join(f"{self._needs[name]:g} {name}; {free.get(name, 0):g} free" for name in scarce),
                waiting,
                self._num_workers,
                ", ".join(f"{there.get(name, 0):g} {name}" for name in scarce),
            )
        elif self._said and not waiting:
            _log.info("no worker waits for room any longer")
        self._said = bool(waiting)


def _waits(actor: Any) -> bool:
    """Tells whether an actor has no room yet: then its address, if any, is a raylet's, and later its own process's."""
    address = actors(actor._actor_id.hex())["Address"]
    raylets = {(node["NodeID"], node["NodeManagerPort"]) for node in ray.nodes()}
    return not address["IPAddress"] or (address["NodeID"], address["Port"]) in raylets


def _amounts(resources: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if name in ("CPU", "GPU")}


def lost_nodes() -> set[str]:
    """Returns the ids of nodes that Ray has given up."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def accelerators(node: str) -> str:
    """Names what Ray found in a node, such as H100."""
    resources: dict[str, float] = next((item["Resources"] for item in ray.nodes() if item["NodeID"] == node), {})
    return ", ".join(sorted(name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")))
