"""Two nodes that share nothing but an object store: own working directories, own temporary directories, own kinds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cal_schemas.opened import open_annotated
from cal_schemas.storage.object_path import ObjectPath
from fault_job import PATIENCE_S, wait_for
from faulty_model import build_faulty_llava
from tiny_data import BAD_ROWS, write_llava_json

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.parametrize("scheme", ["s3"])]

_CLUSTER = """
import json, os, sys
from ray.cluster_utils import Cluster

cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False},
)
for name, kind in (("one", "A100"), ("two", "H100")):
    folder = os.path.join(sys.argv[1], name)
    os.makedirs(os.path.join(folder, "tmp"))
    os.chdir(folder)
    os.environ["TMPDIR"] = os.path.join(folder, "tmp")
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, resources={f"accelerator_type:{kind}": 1})
cluster.wait_for_nodes()
print(cluster.address, flush=True)
print(*(node.metrics_export_port for node in cluster.list_all_nodes()), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster(bucket: ObjectPath, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A cluster of two nodes with one CPU each, which know the store's credentials and not its address.

    Its address, and the ports where its nodes show their metrics.
    """
    environment = {key: value for key, value in os.environ.items() if key != "AWS_ENDPOINT_URL"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER, tmp_path / "nodes"], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        lines = iter(process.stdout.readline, "")
        address = next(line.strip() for line in lines if line.count(":") == 1 and line.strip()[-1].isdigit())
        yield address, next(lines).split()
        process.stdin.close()
        process.wait(120)


def counters(ports: list[str]) -> dict[str, float]:
    """What the nodes show of `cal_..._total`."""
    totals = {}
    for port in ports:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
            totals |= {name: float(value) for name, value in re.findall(r"^ray_cal_(\w+)_total{.*} (\S+)$", text, re.M)}
    return totals


def test_workers_share_nothing_but_the_store_and_the_report_names_both_kinds(
    bucket: ObjectPath, cluster: tuple[str, list[str]], tmp_path: Path
) -> None:
    # Each waits in mid-shard for the other: both have a part in the work, however long one takes to start.
    model = build_faulty_llava(tmp_path / "llava", lengths={"meet": [60, 10**6]}, marker=str(tmp_path / "met"))
    write_llava_json(tmp_path / "in", 40)
    for path in (tmp_path / "in").rglob("*.*"):
        (bucket / "in" / path.relative_to(tmp_path / "in").as_posix()).upload(path, if_absent=True)
    (tmp_path / "driver").mkdir()
    # A script of the user's, which workers would import if they searched the driver's working directory.
    (tmp_path / "driver" / "timeit.py").write_text("raise SystemExit('the script was run')")
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "cal-precompute"), "--model_name_or_path", str(model),
            "--trust_remote_code", "true", "--dtype", "bfloat16",
            "--data_path", f"{bucket}/in/data.json", "--image_folder", f"{bucket}/in/images",
            "--output_dir", f"{bucket}/out", "--rows_per_shard", "4", "--num_workers", "2", "--gpus_per_worker", "0",
            "--cpus_per_worker", "0.75", "--max_image_pixels", "8100",
        ],
        cwd=tmp_path / "driver", env={**os.environ, "RAY_ADDRESS": cluster[0]}, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = open_annotated(bucket / "out")
    statuses = [status for batch in opened.batches(["status"]) for status in batch["status"].to_pylist()]
    assert statuses == [BAD_ROWS.get(number, ("ok",))[0] for number in range(40)]
    (path,) = (bucket / "out/.cal/reports").glob("run-*.json")
    report = json.loads(path.read_text())
    assert len(report["workers"]) == 2
    assert sorted(device.rpartition("with ")[2] for device in report["devices"]) == ["A100)", "H100)"]
    assert {shard["device"] for shard in report["shards"]} == set(report["devices"])
    assert "2 kinds of device measured" in done.stdout
    for shard in report["shards"]:
        assert shard["worker"] in report["workers"]
        assert shard["seconds"]["load"] > 0
        assert shard["seconds"]["forward"] > 0
        assert shard["seconds"]["write"] > 0
    assert sum(shard["rows"] for shard in report["shards"]) == 40
    # The same counts for Prometheus, where Ray's agent on the driver's node shows them.
    wanted = {"rows": 40, "shards": 10, "rows_not_ok": 40 - report["statuses"]["ok"], "shards_retried": 0}
    wait_for(lambda: wanted.items() <= counters(cluster[1]).items(), "the counters are exported")
    # Each node staged on its own disk and left nothing; the driver's directory stayed empty.
    for name in ("one", "two"):
        (staging,) = (tmp_path / "nodes" / name / "tmp").glob("cal-staging-*")
        assert list(staging.iterdir()) == []
    assert list((tmp_path / "driver").iterdir()) == [tmp_path / "driver" / "timeit.py"]
