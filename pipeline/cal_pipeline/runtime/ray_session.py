"""Attaches to a Ray cluster, or starts a small Ray on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray._private import node, ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from cal_pipeline.runtime.cluster import Cluster, check_reachable, named_cluster
from cal_pipeline.runtime.session_dir import end_children, session_dir
from cal_schemas.errors import ConfigError

_RAY_STARTS = 3
_SHUTDOWN_S = 30.0
_OBJECT_STORE_BYTES = 200 * 2**20
_TOKEN_HINT = (
    ". If the cluster asks for a token (`ray start` does where ~/.ray/auth_token exists), set RAY_AUTH_MODE=token"
)
_log = logging.getLogger(__name__)


class _ImportsOfDriver(JobConfig):  # type: ignore[misc]
    """Workers import what this program imports, no more and no less.

    Ray itself puts the working directory first on their path, where a script of the user's may be called timeit.py.
    Nodes of a cluster have environments of their own: they get that directory, and the script's, only if this program
    searches it.
    """

    def __init__(self, *, local: bool) -> None:
        super().__init__()
        self._py_driver_sys_path: list[str] = []
        self._local = local

    def _get_proto_job_config(self) -> Any:
        here = [path or str(Path.cwd()) for path in sys.path]
        rays = self._py_driver_sys_path
        # Workers insert them one by one, each in front of the last.
        self._py_driver_sys_path = [path for path in reversed(here) if self._local or path in rays]
        return super()._get_proto_job_config()


class _BareNode(node.Node):  # type: ignore[misc]
    """Starts nothing that a run does not use: autoscaler, API server and what passes logs on are a program each."""

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass

    def start_api_server(self, **_: object) -> None:
        self._webui_url = ""
        # Ray's agents ask for its address, and log a traceback each second while there is none. Nobody listens there.
        self.get_gcs_client().internal_kv_put(
            ray_constants.DASHBOARD_ADDRESS.encode(), b"127.0.0.1:9", True, ray_constants.KV_NAMESPACE_DASHBOARD
        )


@contextmanager
def ray_session(cluster: Cluster, starting: Callable[[], AbstractContextManager[None]] = nullcontext) -> Iterator[None]:
    """Attaches to the cluster that is named (also by RAY_ADDRESS), or starts a small Ray on this machine.

    `starting` is entered around `ray.init`, which takes signals for itself. Raises ConfigError when there is no cluster
    at the address, or Ray cannot start here.
    """
    if ray.is_initialized():  # A second start would fail, and `_init` end what somebody else in this process runs on.
        raise ConfigError("Ray runs in this process already: call ray.shutdown() first")
    address = named_cluster(cluster.address)
    with nullcontext() if address else _closed_to_others(), nullcontext() if address else session_dir() as temporary:
        try:
            _init(cluster, address, temporary, starting)
            yield
        finally:
            _shut_down(temporary)


def _shut_down(temporary: str | None) -> None:
    """Ends Ray; a raylet of ours that stands still would never let go of this process, and is killed after a while."""
    limit = threading.Timer(_SHUTDOWN_S, end_children, (Path(temporary),)) if temporary else None
    if limit:
        limit.start()
    try:
        ray.shutdown()
    finally:
        if limit:
            limit.cancel()


@contextmanager
def _closed_to_others() -> Iterator[None]:
    """A Ray that is started meanwhile asks everybody for a token that only its own processes know, on loopback alone.

    Whatever the environment says: who can speak to a Ray can run code as its user. Puts the environment back.
    """
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_K8S_TOKEN_AUTH": "0",
        # Ray's way to say that its only node is this machine, and listens on 127.0.0.1; also on Linux.
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    }
    before = {name: os.environ[name] for name in ours if name in os.environ}
    network = ray_constants.ENABLE_RAY_CLUSTER
    try:
        os.environ |= ours
        ray_constants.ENABLE_RAY_CLUSTER = False
        _read_environment_again()
        yield
    finally:
        for name in ours:
            del os.environ[name]
        os.environ |= before
        ray_constants.ENABLE_RAY_CLUSTER = network
        _read_environment_again()


def _read_environment_again() -> None:
    """Ray reads the mode when it is imported, and its token once. In this order: a mode without a token ends Ray."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _bare() -> Iterator[None]:
    """A Ray that is started meanwhile is no more than what its workers need: `ray.init` has no flags for that."""
    before = node.Node
    node.Node = _BareNode
    try:
        yield
    finally:
        node.Node = before


def _init(
    cluster: Cluster,
    address: str | None,
    temporary: str | None,
    starting: Callable[[], AbstractContextManager[None]],
) -> None:
    where = f"no Ray cluster at {address} (--ray_address or RAY_ADDRESS)"
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    given["job_config"] = _ImportsOfDriver(local=not address)
    if address:
        # `auto` leads to what `ray start` noted here last, which may be long gone.
        known = address != "auto" and check_reachable(address)
        given |= {"address": address}
    else:
        where = "Ray cannot start here"
        wanted = int(-(-cluster.num_workers * cluster.cpus_per_worker // 1))
        given |= {"address": "local", "num_cpus": max(os.cpu_count() or 1, wanted), "include_dashboard": False}
        given |= {"object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": temporary}
        # Else a process of Ray's begins on every CPU, before any is asked for.
        given |= {"_system_config": {"prestart_worker_first_driver": False}}
    for tries_left in reversed(range(1 if address else _RAY_STARTS)):
        try:
            if address == "auto":
                check_reachable(services.canonicalize_bootstrap_address(address))
            elif address and known:
                GcsClient(address=address)  # Another server is found out at once; `ray.init` asks it twenty times.
            with starting(), nullcontext() if address else _bare():
                ray.init(**given)
            return
        except ConfigError:
            raise
        except Exception as error:  # Ray raises a bare Exception when it gives its own processes up after 30 s.
            reason = f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
            if not tries_left:
                # Ray itself does not send its token to an address that was named, and does not say so.
                hint = "" if not address or "RAY_AUTH_MODE" in os.environ else _TOKEN_HINT
                raise ConfigError(reason + hint) from error
            _log.warning("%s; trying again", reason)
            ray.shutdown()
