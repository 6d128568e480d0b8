"""Forty shards under random worker kills, a node loss and a driver restart, drawn from a seed.

`CAL_CHAOS_SEED=7 pytest tests/faults/test_chaos.py` plays another game; the seed is in the failure's message.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from fault_job import Job, frozen, wait_for

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.full]

SHARDS, ROWS = 40, 4
SEED = int(os.environ.get("CAL_CHAOS_SEED", "0"))


def nodes(count: int) -> Cluster:
    memory = 100 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    for _ in range(count):
        cluster.add_node(num_cpus=1, object_store_memory=memory)
    cluster.wait_for_nodes()
    return cluster


def test_chaos_loses_no_row_and_changes_no_column(
    tmp_path: Path, slow_model: Path, calm: Job, shards: Callable[[int], Path]
) -> None:
    draw = random.Random(SEED)
    # What happens when so many shards are finished: spread over the run, in an order of its own for each seed.
    blows = ["kill worker"] * draw.randint(2, 4) + ["lose node", "kill driver", draw.choice(["kill driver", "SIGTERM"])]
    draw.shuffle(blows)
    moments = sorted(draw.sample(range(1, SHARDS - 4), len(blows)))
    chaos = f"CAL_CHAOS_SEED={SEED}: {list(zip(moments, blows, strict=True))}"
    print(chaos)  # noqa: T201  pytest shows it when anything below fails.
    expected = calm.table(SHARDS)
    cluster = nodes(2)
    flags = ("--num_workers", "2", "--ray_address", cluster.address)
    job = Job(model=slow_model, data=shards(SHARDS), output=tmp_path / "out", flags=flags)
    finished: dict[str, tuple[bytes, int]] = {}
    drivers = 1
    try:
        process = job.start()
        for moment, blow in zip(moments, blows, strict=True):
            with frozen(process, job, of=os.getpid(), done=moment) as busy:
                finished.update(job.contents())
                if blow == "kill worker":
                    os.kill(draw.choice(busy), signal.SIGKILL)
                elif blow == "lose node":
                    cluster.remove_node(draw.choice(sorted(cluster.worker_nodes, key=str)), allow_graceful=False)
                    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)  # As a spot market would.
            if blow in ("kill driver", "SIGTERM"):
                process.send_signal(signal.SIGKILL if blow == "kill driver" else signal.SIGTERM)
                wait_for(lambda: process.poll() is not None, chaos)  # noqa: B023
                process, drivers = job.start(), drivers + 1
        code = job.finish(process)
        assert code in (0, 1), job.said()
        if code == 1:  # Three blows may have hit the same shard: it is listed, and a rerun does it.
            assert "FAILED" in job.said(), chaos
            assert job.run() == 0, job.said()
    finally:
        cluster.shutdown()
    assert drivers == 3, chaos
    assert {name: job.contents()[name] for name in finished} == finished, chaos
    table = job.table()
    assert Counter(table["sample_id"].to_pylist()) == Counter(
        {f"s{n:02d}-{r}": 1 for n in range(SHARDS) for r in range(ROWS)}
    )
    assert table.equals(expected), chaos
    assert job.staged() == [], chaos
