"""The Ray that a run starts is its own: nobody else gets in, whatever the environment says."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private import services

from cal_pipeline.runtime.cluster import Cluster
from cal_pipeline.runtime.ray_session import ray_session
from cal_schemas.errors import ConfigError

pytestmark = pytest.mark.slow
RUN = """
import os, sys
from cal_pipeline.runtime.cluster import Cluster
from cal_pipeline.runtime.ray_session import ray_session
import ray
def settings():
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_AUTH", "RAY_ENABLE"))}

class Actor:
    def one(self):
        return 1

before = settings()
cluster = Cluster(
    num_workers=1, gpus_per_worker=0, cpus_per_worker=1, address=None, max_tries=1, shard_timeout_s=9,
    start_timeout_s=9, idle_timeout_s=9,
)
with ray_session(cluster):
    actor = ray.remote(Actor).remote()
    assert ray.get(actor.one.remote()) == 1
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
assert settings() == before
print("put back", flush=True)
"""
INTRUDER = """
import os, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("inside:", ray.get(ray.remote(lambda: os.getuid()).remote()))
"""


@pytest.fixture(params=["disabled", pytest.param("token", marks=pytest.mark.full)])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """What an intruder knows too."""
    return {"RAY_AUTH_MODE": request.param, "RAY_AUTH_TOKEN": "known" * 10}


@pytest.fixture
def run(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    # Ray's own word for a Ray that is started here is as good as none.
    own = {"RAY_ADDRESS": "local" if environment["RAY_AUTH_MODE"] == "disabled" else ""}
    with subprocess.Popen(
        [sys.executable, "-c", RUN], env=os.environ | environment | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        yield process
        process.communicate(timeout=60)
    assert process.returncode == 0


def descendants(pid: int) -> set[int]:
    """The process and all that it started, also what was started by those that have ended since."""
    session = os.getsid(pid)
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                found.add(int(entry.name))
        except ProcessLookupError:
            continue
    return found


def listening(pids: set[int]) -> set[str]:
    """Addresses, as the kernel writes them, that these processes wait for connections at."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(entry.readlink()))
            except FileNotFoundError:
                continue
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                addresses.add(fields[1].partition(":")[0])
    return addresses


def test_nobody_without_its_token_gets_into_a_ray_that_was_started_here_and_it_listens_on_loopback_alone(
    run: subprocess.Popen[str], environment: dict[str, str]
) -> None:
    assert run.stdout is not None
    address = run.stdout.readline().strip()
    assert address.startswith("127.0.0.1:")
    assert listening(descendants(run.pid)) == {"0100007F", "0000000000000000FFFF00000100007F"}
    intruder = subprocess.run(
        [sys.executable, "-c", INTRUDER, address],
        env=os.environ | environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},  # Else it asks the network.
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "inside" not in intruder.stdout
    assert "uthenticat" in intruder.stderr, intruder.stderr
    assert run.stdin is not None
    run.stdin.close()
    assert run.stdout.read() == "put back\n"
    run.stdin = None


@pytest.mark.full
@pytest.mark.parametrize("environment", ["disabled"], indirect=True)
def test_it_has_one_process_for_one_worker_and_neither_autoscaler_nor_api_server_nor_log_monitor(
    run: subprocess.Popen[str],
) -> None:
    assert run.stdout is not None
    assert run.stdin is not None
    run.stdout.readline()
    started = descendants(run.pid) - {run.pid}
    titles = [Path(f"/proc/{pid}/cmdline").read_bytes().partition(b" --")[0] for pid in started]
    assert len(titles) == 5, titles  # With Ray's two servers and its two agents.
    assert sum(title.startswith(b"ray::Actor") for title in titles) == 1, titles
    assert not [title for title in titles if b"monitor" in title or b"dashboard.py" in title]
    run.stdin.close()
    assert run.stdout.read() == "put back\n"
    run.stdin = None


@pytest.mark.full
@pytest.mark.parametrize("environment", ["token"], indirect=True)
def test_a_raylet_that_stands_still_does_not_hold_the_end(run: subprocess.Popen[str]) -> None:
    assert run.stdout is not None
    assert run.stdin is not None
    run.stdout.readline()
    (raylet,) = (pid for pid in descendants(run.pid) if b"raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(raylet, signal.SIGSTOP)
    run.stdin.close()
    try:
        assert run.wait(timeout=150) == 0
    except subprocess.TimeoutExpired:
        run.kill()
        os.kill(raylet, signal.SIGKILL)
        raise
    assert run.stdout.read() == "put back\n"
    run.stdin = None


@pytest.mark.parametrize("there", ["auto", None])
def test_a_cluster_that_auto_still_finds_a_note_of_and_that_is_gone_is_refused_at_once(
    there: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(
        num_workers=1, gpus_per_worker=0, cpus_per_worker=1, address=there, max_tries=1, shard_timeout_s=9,
        start_timeout_s=9, idle_timeout_s=9,
    )  # fmt: skip
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setattr(services, "find_gcs_addresses", functools.cache(set))
        monkeypatch.setattr(services, "find_bootstrap_address", lambda _: f"127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", "" if there else "auto")
        started = time.monotonic()
        with pytest.raises(ConfigError, match=rf"no Ray cluster at \S+:{port} .*refused"), ray_session(cluster):
            pass
    assert time.monotonic() - started < 15


def test_a_ray_that_somebody_started_in_this_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("shutdown"))
    cluster = Cluster(
        num_workers=1, gpus_per_worker=0, cpus_per_worker=1, address=None, max_tries=1, shard_timeout_s=9,
        start_timeout_s=9, idle_timeout_s=9,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"call ray\.shutdown\(\) first"), ray_session(cluster):
        pass
    assert ended == []
