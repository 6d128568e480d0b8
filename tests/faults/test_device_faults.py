"""An accelerator that runs out of memory, and one that is lost: simulated inside a real model's forward pass."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fault_job import Job, lengthen, write_shards
from faulty_model import build_faulty_llava

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.full]


def test_out_of_memory_costs_one_row_and_a_lost_device_one_worker(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data", 3, rows=8)
    lengthen(data / "s01.parquet", 120)  # The device is lost on this row, once.
    lengthen(data / "s02.parquet", 400)  # This row never fits.
    model = build_faulty_llava(
        tmp_path / "model", max_tokens=300, lengths={"device_once": [140, 300]}, marker=str(tmp_path / "lost")
    )
    job = Job(model=model, data=data, output=tmp_path / "out", flags=("--tokens_per_batch", "1024"))
    assert job.run() == 0, job.said()
    assert (tmp_path / "lost").exists()
    assert "shard s01, try 1 of 3: worker" in job.said()
    (path,) = (job.output / ".cal" / "reports").glob("*.json")
    report = json.loads(path.read_text())
    assert report["retries"] == 1
    assert len(set(report["workers"])) == 2
    rows = {name: pq.read_table(job.output / f"{name}.parquet").to_pylist() for name in job.done()}
    assert [len(part) for part in rows.values()] == [8, 8, 8]
    last = rows["s02"][-1]
    assert last["status"] == "out_of_memory"
    assert f"{last['num_tokens']} tokens do not fit into the accelerator's memory" in last["error"]
    assert {row["status"] for part in rows.values() for row in part if row is not last} == {"ok"}
    logs = "".join(path.read_text() for path in (job.output / ".cal" / "logs").glob("*.log"))
    assert "does not fit into the accelerator's memory; going on with at most" in logs
    assert "device-side assert triggered (simulated)" in logs
