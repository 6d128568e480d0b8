"""An operator asks how far a run is: while it goes, and after its driver was killed."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fault_job import PROGRAM, Job, frozen, lengthen, write_shards
from faulty_model import build_faulty_llava

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def status(*flags: object) -> str:
    done = subprocess.run([PROGRAM, *map(str, flags)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return {
            name: float(value) for name, value in re.findall(r"^(cal_\w+){.*} (\S+)$", answer.read().decode(), re.M)
        }


def break_image(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    rows[0]["images"][0]["bytes"] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows), path)


def busy_at_last_beat(job: Job) -> set[int]:
    """Process ids of the workers that the driver last said to have a shard."""
    (path,) = (job.output / ".cal").glob("driver-*[0-9a-f].json")
    workers = json.loads(path.read_text())["workers"]
    return {int(re.findall(r", pid (\d+),", worker["where"])[0]) for worker in workers if worker["state"] == "busy"}


@pytest.mark.full
def test_status_and_metrics_tell_a_run_as_it_goes_and_after_sigkill(tmp_path: Path) -> None:
    model = build_faulty_llava(tmp_path / "model", seconds_per_pass=0.25, lengths={"kill": [200, 10**6]})
    data = write_shards(tmp_path / "data", 48)
    break_image(data / "s01.parquet")
    lengthen(data / "s00.parquet", 200)
    job = Job(
        model=model, data=data, output=tmp_path / "out",
        flags=("--num_workers", "2", "--max_tries", "1", "--log_format", "json"),
    )  # fmt: skip
    process = job.start()

    def told() -> dict[str, Any] | None:
        for path in (job.output / ".cal").glob("driver-*[0-9a-f].json"):
            said: dict[str, Any] = json.loads(path.read_text())
            if said.get("shards_failed") and said["statuses"].get("image_error") and said["shards_done"] >= 2:
                return said
        return None

    job.wait_for(process, told, "a heartbeat tells of a shard that failed and of a row that is not ok")
    with frozen(process, job) as busy:
        # Workers stood still after the last heartbeat: the next one is of them.
        job.wait_for(
            process, lambda: busy_at_last_beat(job) & set(busy), "a heartbeat tells of a worker that stands still"
        )
        now = json.loads(status("--status", job.output, "--json"))
        (driver,) = now["drivers"]
        assert (now["shards_planned"], now["shards_done"]) == (48, len(job.done()))
        assert list(now["shards_failed"]) == ["s00"]
        assert "died" in now["shards_failed"]["s00"]
        assert now["statuses"]["image_error"] == 1
        assert driver["alive"]
        assert driver["rows_per_s"] > 0
        assert driver["seconds_left"] > 0
        at_work = [worker for worker in driver["workers"] if worker["state"] == "busy"]
        assert any(f"{platform.node()}, pid {pid}, node " in worker["where"] for worker in at_work for pid in busy)
        assert all(worker["shard"].startswith("s") and worker["since"] <= driver["beat"] for worker in at_work)
        shown = metrics(driver["metrics"])
        assert shown["cal_shards_planned"] == 48
        assert shown["cal_shards_failed"] == 1
        assert shown["cal_rows_not_ok_total"] == 1
        assert shown["cal_shards_retried_total"] == 0
        assert shown["cal_workers_alive"] >= 1
        assert 2 <= shown["cal_shards_done"] <= len(job.done())
        assert shown["cal_last_shard_finished_timestamp_seconds"] <= driver["beat"] + driver["said_s_ago"] + 60
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        after = status("--status", job.output)
    assert f"{job.output}: {len(job.done())} of 48 shards are done" in after
    assert f"driver on {platform.node()}, pid {process.pid}, started 20" in after
    assert "is gone without a report; what it said last" in after
    assert re.search(
        r"^  \d+ of 192 rows measured, \d+\.\d rows/s, .* left, 0 tries again; metrics at http://127", after, re.M
    )
    assert re.search(
        rf"^  worker {platform.node()}, pid \d+, node \w{{8}}: s\d\d for .*, since \d\d:\d\d:\d\d$", after, re.M
    )
    assert re.search(r"^1 of \d+ rows is not ok: 1 image_error$", after, re.M)
    assert re.search(r"^FAILED s00: worker .* died", after, re.M)

    # Both logs are JSON, and say who did what.
    lines = [json.loads(line) for line in job.log.read_text().splitlines()]
    (given_up,) = [line for line in lines if line["level"] == "ERROR"]
    assert given_up["shard"] == "s00"
    assert f"worker {platform.node()}, pid " in given_up["message"]
    assert any("metrics for Prometheus are at http://127.0.0.1:" in line["message"] for line in lines)
    logged = [
        json.loads(line)
        for path in (job.output / ".cal" / "logs").iterdir()
        for line in path.read_text().splitlines()
        if line.startswith("{")
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}$", line["time"]) for line in logged)
    assert {line.get("shard") for line in logged} >= set(job.done())
