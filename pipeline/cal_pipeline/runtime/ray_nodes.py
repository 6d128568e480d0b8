"""Asks Ray about its nodes: which are lost, what they hold, and whether this program's own still lives."""

from __future__ import annotations

import socket
import time

import ray

from cal_pipeline.runtime.faults import RunAbortedError

_ASK_EVERY_S = 10.0


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


def lost_nodes() -> set[str]:
    """Returns the ids of nodes that Ray has given up."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def accelerators(node: str) -> str:
    """Names what Ray found in a node, such as H100."""
    resources: dict[str, float] = next((item["Resources"] for item in ray.nodes() if item["NodeID"] == node), {})
    return ", ".join(sorted(name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")))
