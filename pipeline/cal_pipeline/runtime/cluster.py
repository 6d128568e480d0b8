"""Holds what a run asks of Ray and what comes back, in types that need no Ray."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass, field
from typing import Protocol

from cal_pipeline.output.shard_report import ShardReport
from cal_schemas.errors import ConfigError

_CONNECT_S = 5.0
_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Says what to ask of Ray."""

    num_workers: int
    gpus_per_worker: float
    cpus_per_worker: float
    address: str | None
    max_tries: int
    shard_timeout_s: float
    start_timeout_s: float
    idle_timeout_s: float
    max_rows_not_ok: float = math.inf
    """The run stops when more of its rows are not ok."""


def named_cluster(ray_address: str | None) -> str | None:
    """Where the cluster is; None to start one. As Ray has it: RAY_ADDRESS goes before `auto`, and `local` is none."""
    if ray_address in (None, "auto"):
        ray_address = os.environ.get("RAY_ADDRESS") or ray_address
    return None if ray_address in ("", "local") else ray_address


def short_of_cpus(num_workers: int, cpus_per_worker: float, ray_address: str | None) -> str | None:
    """Says that workers ask for more CPUs than this machine has, and what then; None where it has them.

    Also None where a cluster is named, whose nodes are others.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = num_workers * cpus_per_worker
    if wanted <= there or num_workers == 1 or named_cluster(ray_address):
        return None
    return (
        f"--num_workers {num_workers} at --cpus_per_worker {cpus_per_worker:g} asks for {wanted:g} CPUs, and this "
        f"machine has {there}: all {num_workers} are started and share them, each with a model of its own in memory"
    )


def check_reachable(address: str, timeout_s: float = _CONNECT_S) -> bool:
    """Tells whether an address is a `host:port` where gRPC is spoken, as Ray does.

    Raises ConfigError when nothing listens there, or something else: Ray itself would try for a quarter of an hour. The
    first answer of gRPC is a frame of settings of HTTP/2. So is Ray Client, through which no node and no actor can be
    looked at, and a user or password, which Ray knows none of. Other forms are left to Ray, which refuses them quickly.
    """
    nothing = f"no Ray cluster at {address.rpartition('@')[2]} (--ray_address or RAY_ADDRESS)"
    if "@" in address:
        raise ConfigError(f"{nothing}: give host:port, without a user or password")
    if address.startswith("ray://"):
        raise ConfigError(f"{nothing}: Ray Client cannot be used; start this on a node, and give the head's host:port")
    host, separator, port = address.rpartition(":")
    if not separator or "/" in host or not port.isdecimal():
        return False
    answer = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return True
            connection.sendall(_HTTP2)
            while len(answer) < len(_SETTINGS) and (more := connection.recv(64)):
                answer += more
    except TimeoutError as error:
        raise ConfigError(f"{nothing}: what listens there gave no answer for {timeout_s:g} s") from error
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{nothing}: {error}") from error
    # The length of a frame of settings varies, its kind does not.
    if answer[3:4] != _SETTINGS[3:4] or not answer.startswith(b"\0"):
        raise ConfigError(f"{nothing}: something else listens there, and answers {answer[:40]!r}")
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerState:
    """Says what one worker does now."""

    where: str
    """Its host, process and Ray node; `?` until it is placed."""
    state: str
    """`placing`, `starting`, `idle` or `busy`."""
    since: float
    """Seconds since the epoch."""
    shard: str | None


class Listener(Protocol):
    """Hears of the run's progress; called from the driver's loop, at least every half second."""

    def tick(self) -> None:
        """Hears that time has passed."""

    def finished(self, report: ShardReport) -> None:
        """Hears that a shard is done."""


@dataclass(kw_only=True, slots=True)
class RunOutcome:
    """Collects how the run ended, shard by shard."""

    reports: list[ShardReport] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Shard name -> why its last try failed."""
    aborted: str | None = None
    """Why the run stopped before its end, and what to do; finished shards are intact."""
    refused: bool = False
    """Set where it was aborted and no worker ever came up: each said why itself, or none could be placed."""
    too_many_not_ok: str | None = None
    """Set when the run stopped because more rows than allowed were not ok: how many of how many."""
    retries: int = 0
    failed_starts: int = 0
    """Of workers."""
    seconds_short: float = 0.0
    """For so long there were fewer workers than asked for, because starts failed."""
    first_worker_at: float | None = None
    """time.monotonic() when the first worker had its model loaded and checked."""
    workers: list[str] = field(default_factory=list)
    devices: dict[str, int] = field(default_factory=dict)
    """What the workers computed on, in words -> how many of them."""
    at_work: list[WorkerState] = field(default_factory=list)
    """What the workers do, as of the driver's last look."""
