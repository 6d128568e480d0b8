"""Two nodes (`ray.cluster_utils.Cluster`): one is lost, none has a free GPU, or there is no cluster at all."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ray._private.node import Node as ClusterNode
from ray.cluster_utils import Cluster

from cal_pipeline.runtime.cluster import Cluster as RayCluster
from cal_pipeline.runtime.ray_session import ray_session
from cal_schemas.errors import ConfigError
from fault_job import Job, alive, busy_workers, frozen, wait_for, write_shards
from faulty_model import build_faulty_llava

ON_CPU = """
import sys
from dataclasses import replace
from cal_pipeline import cli
from cal_pipeline.runtime import plan
make_plan = plan.make_plan
def on_cpu(*arguments, **options):
    planned = make_plan(*arguments, **options)
    return replace(planned, settings=replace(planned.settings, device="cpu"))
plan.make_plan = on_cpu
cli.main()
"""
pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.full]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that takes no workers and one node with room for one; tests add nodes of their own."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def job(tmp_path: Path, cluster: Cluster, slow_model: Path, shards: Callable[[int], Path]) -> Job:
    flags = ("--num_workers", "2", "--ray_address", cluster.address)
    return Job(model=slow_model, data=shards(6), output=tmp_path / "out", flags=flags)


def test_the_shard_of_a_lost_node_moves_to_the_other_and_costs_no_try(job: Job, cluster: Cluster, calm: Job) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    process = job.start("--max_tries", "1")
    with frozen(process, job, of=os.getpid()):
        node, workers = node_at_work(cluster)
        cluster.remove_node(node, allow_graceful=False)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    assert job.finish(process) == 0, job.said()
    assert "moves to another node: the node of worker" in job.said()
    assert job.said().count("Ray says: The node with node id") == 1
    assert "raylet has lagging heartbeats" not in job.said()
    (notices,) = (job.output / ".cal" / "logs").glob("ray-*.log")
    assert "raylet has lagging heartbeats" in notices.read_text()
    assert job.table().equals(calm.table(6))
    assert job.staged() == []


def node_at_work(cluster: Cluster) -> tuple[ClusterNode, list[int]]:
    """A node with workers in the middle of a shard, and these."""
    for node in cluster.worker_nodes:
        if workers := busy_workers(node.all_processes["raylet"][0].process.pid):
            return node, workers
    raise AssertionError("no node is at work")


def test_a_cluster_without_a_free_gpu_ends_the_wait_and_names_what_is_asked_and_there(job: Job) -> None:
    process = job.start("--gpus_per_worker", "0.5", "--idle_timeout_s", "3")
    assert job.finish(process) == 2, job.said()
    said = job.said()
    assert "cal-precompute: no worker could be placed for 3 s: each needs 0.5 GPU and 1 CPU; the cluster has " in said
    assert "{'CPU': 1.0}, of which free {'CPU': 1.0}" in said


def test_a_run_on_a_full_cluster_says_what_it_waits_for_and_goes_on_when_it_is_free(
    tmp_path: Path, cluster: Cluster, slow_model: Path, shards: Callable[[int], Path]
) -> None:
    flags = ("--gpus_per_worker", "1", "--ray_address", cluster.address)
    first, second = (
        Job(model=slow_model, data=shards(2), output=tmp_path / name, flags=flags, code=ON_CPU) for name in "ab"
    )
    node = cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=100 * 2**20)
    try:
        holding = first.start()
        with frozen(holding, first, of=os.getpid()):
            waiting = second.start()
            words = "waiting for 1 GPU; 0 free: 1 of 1 workers are not placed (the cluster has 1 GPU)"
            second.wait_for(waiting, lambda: words in second.said(), "the second says that it waits")
        assert first.finish(holding) == 0, first.said()
        assert second.finish(waiting) == 0, second.said()
    finally:
        cluster.remove_node(node)
    assert "no worker waits for room any longer" in second.said()
    assert "waiting for" not in first.said()


def test_two_workers_share_a_gpu_and_a_third_is_not_placed(tmp_path: Path, cluster: Cluster) -> None:
    # The node only says that it has a GPU, so the model computes on the CPU; placing is Ray's, for real. A worker
    # waits in its first pass until there is another: one after the other they would never end.
    model = build_faulty_llava(tmp_path / "model", lengths={"meet": [0, 10**6]}, marker=str(tmp_path / "met"))
    flags = ("--num_workers", "3", "--gpus_per_worker", "0.5", "--ray_address", cluster.address)
    job = Job(model=model, data=write_shards(tmp_path / "data", 4), output=tmp_path / "out", flags=flags, code=ON_CPU)
    node = cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=100 * 2**20)
    try:
        assert job.run() == 0, job.said()
    finally:
        cluster.remove_node(node)
    (report,) = (job.output / ".cal" / "reports").glob("*.json")
    assert len(json.loads(report.read_text())["workers"]) == 2
    assert job.table().num_rows == 16


def test_workers_of_a_driver_that_is_killed_end_on_the_cluster_too(job: Job, calm: Job) -> None:
    process = job.start()
    with frozen(process, job, of=os.getpid(), done=1) as workers:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = job.contents()
    wait_for(lambda: not any(map(alive, workers)), "the cluster has ended the dead driver's workers")
    assert job.run() == 0, job.said()
    assert before.items() <= job.contents().items()
    assert job.table().equals(calm.table(6))


def test_sigterm_frees_the_cluster_and_leaves_nothing_staged(job: Job) -> None:
    process = job.start()
    with frozen(process, job, of=os.getpid()) as workers:
        pass
    process.send_signal(signal.SIGTERM)
    assert job.finish(process) == 143, job.said()
    assert job.staged() == []
    wait_for(lambda: not any(map(alive, workers)), "the workers have ended")


def test_an_address_without_a_cluster_is_refused(job: Job) -> None:
    refused = Job(model=job.model, data=job.data, output=job.output, flags=("--ray_address", "127.0.0.1:1"))
    assert refused.run() == 2, refused.said()
    assert "cal-precompute: no Ray cluster at 127.0.0.1:1 (--ray_address or RAY_ADDRESS): " in refused.said()


def test_a_port_of_ray_that_is_not_the_clusters_is_refused_within_15_seconds(cluster: Cluster) -> None:
    node = cluster.global_state.node_table()[0]
    asked = RayCluster(
        num_workers=1, gpus_per_worker=0, cpus_per_worker=1, max_tries=1, shard_timeout_s=1, start_timeout_s=1,
        idle_timeout_s=1, address=f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}",
    )  # fmt: skip
    started = time.monotonic()
    with pytest.raises(ConfigError, match="no Ray cluster at "), ray_session(asked):
        pass
    assert time.monotonic() - started < 15
