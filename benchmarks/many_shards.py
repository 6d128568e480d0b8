"""What the driver spends on many tiny shards: planning, resume scan, and handing them out; time and memory of each.

Shards are real files; the workers are real Ray actors that answer at once and measure nothing, so that what is left is
the driver's own part. Every row is measured in a process of its own:

    python benchmarks/many_shards.py --shards 1000 2500 5000 10000 --json benchmarks/results/many_shards-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cal_pipeline import parquet_source, ray_driver
from cal_pipeline.annotate import ShardReport
from cal_pipeline.cluster import Cluster, RunOutcome
from cal_pipeline.resume import compare_with_output
from cal_pipeline.shards import Shard, carried_fields, plan_shards
from cal_pipeline.store import LocalStore
from cal_pipeline.worker import Outcome
from cal_schemas.annotated import AnnotatedRow, ShardMetadata, ShardWriter, annotated_schema
from cal_schemas.sample import Sample
from cal_schemas.spec import ContrastSpec, InputSpec, LabelSpec, MeasurementSpec

WORKERS = 2
SPEC = MeasurementSpec(
    label=LabelSpec(tokenizer_digest="0", chat_template_digest="0", template="auto"),
    input=InputSpec(
        image_processor="p",
        image_processor_backend="pil",
        image_processor_digest="0",
        image_aspect_ratio="native",
        max_length=2048,
        truncation="drop",
    ),
    contrast=ContrastSpec(),
    dtype="float32",
    attn_implementation="sdpa",
    model_id="none",
    revision=None,
    weights_digest="0",
    reference_saw_data="unknown",
)


class IdleWorker(ray_driver._Actor.__ray_metadata__.modified_class):  # type: ignore[attr-defined,misc]
    """Stands where a worker stands and says at once that the shard is done."""

    def start(self, settings: object) -> str:
        return ""

    def run(self, shard: Shard) -> Outcome:
        return Outcome(kind="done", report=ShardReport(name=shard.name, rows=1, statuses={"ok": 1}, committed=True))


class Watch:
    """Notes the driver's memory each time a tenth of the shards is finished."""

    def __init__(self, num_shards: int) -> None:
        self.finished_shards, self.every = 0, max(1, num_shards // 10)
        self.first_at = 0.0
        self.rss_mb: list[float] = []

    def tick(self) -> None:
        pass

    def finished(self, report: ShardReport) -> None:
        self.first_at = self.first_at or time.monotonic()
        self.finished_shards += 1
        if self.finished_shards % self.every == 0:
            self.rss_mb.append(rss_mb())


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_source(folder: Path, num_shards: int) -> None:
    table = pa.Table.from_pylist(
        [{"id": "1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "score": 1}]
    )
    for number in range(num_shards):
        sub = folder / f"{number // 1000:03d}"
        sub.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, sub / f"{number:06d}.parquet")


def finish(store: LocalStore, shard: Shard, schema: pa.Schema) -> None:
    """Publishes a shard as a worker would, with one row."""
    row = AnnotatedRow(
        sample=Sample(sample_id="1", images=(), messages=None, carried={"score": 1}),
        sample_key="k",
        label_ids=np.array([1], np.int32),
        label_positions=np.array([1], np.int32),
        delta_logits=np.array([1.0], np.float32),
        num_tokens=2,
    )
    metadata = ShardMetadata(spec=SPEC, source=shard.source, carry="paths", tokens_per_batch=1, library_versions={})
    with store.staging(shard.name) as partial:
        with ShardWriter(partial, schema, metadata) as writer:
            writer.write(row)
        final = store.path(shard.name)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(final)  # Without the fsync of a commit: ten thousand of them measure the disk.


def measure(num_shards: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        source, store = Path(name) / "data", LocalStore(output_dir=Path(name) / "out")
        write_source(source, num_shards)
        store.prepare()
        before = rss_mb()
        at, cpu = time.monotonic(), time.process_time()
        shards = plan_shards([str(source)])
        schema = annotated_schema(carry="paths", carried=carried_fields(shards))
        for shard in shards:
            parquet_source.embedded_image_bytes(Path(shard.source.uri))
        planning = {"planning_s": time.monotonic() - at, "planning_cpu_s": time.process_time() - cpu}
        planned_mb = rss_mb() - before
        # Elsewhere: what a thousand writers leave in a process's memory is not the driver's.
        subprocess.run([sys.executable, __file__, "--finish", name], check=True)
        written_mb = rss_mb()
        at, cpu = time.monotonic(), time.process_time()
        progress = compare_with_output(shards, spec=SPEC, schema=schema, carry="paths", store=store)
        resume = {"resume_scan_s": time.monotonic() - at, "resume_scan_cpu_s": time.process_time() - cpu}
        assert len(progress.done) == num_shards
        scanned_mb = rss_mb() - written_mb
        watch, handed = hand_out(shards, store)
    times = {name: round(value, 3) for name, value in (planning | resume | handed).items()}
    memory = {"planning_mb": round(planned_mb, 1), "resume_scan_mb": round(scanned_mb, 1)}
    memory |= {"driver_rss_mb": [round(value, 1) for value in watch.rss_mb]}
    return {"shards": num_shards} | times | memory


def hand_out(shards: list[Shard], store: LocalStore) -> tuple[Watch, dict[str, float]]:
    ray_driver._Actor = ray.remote(IdleWorker)
    cluster = Cluster(
        num_workers=WORKERS, gpus_per_worker=0, cpus_per_worker=1, address=None, max_tries=3, shard_timeout_s=600,
        start_timeout_s=600, idle_timeout_s=600,
    )  # fmt: skip
    watch, outcome = Watch(len(shards)), RunOutcome()
    settings = type("Settings", (), {"store": store})
    with ray_driver.ray_session(cluster):
        cpu = time.process_time()
        ray_driver.run_shards(shards, settings, cluster, store.internal / "logs", watch, outcome)  # type: ignore[arg-type]
        seconds = time.monotonic() - watch.first_at
        cpu = time.process_time() - cpu
    assert len(outcome.reports) == len(shards)
    return watch, {"driver_s": seconds, "driver_cpu_s": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 2_500, 5_000, 10_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--finish", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.finish:
        shards = plan_shards([str(flags.finish / "data")])
        schema = annotated_schema(carry="paths", carried=carried_fields(shards))
        for shard in shards:
            finish(LocalStore(output_dir=flags.finish / "out"), shard, schema)
        return
    if flags.measure:
        print("RESULT " + json.dumps(measure(flags.measure)))
        return
    print("| shards | planning, ms each | resume scan, ms each | handing out, ms each | driver, MB at 10 % and 100 % |")
    print("|---|---|---|---|---|")
    rows = []
    for num_shards in flags.shards:
        command = [sys.executable, __file__, "--measure", str(num_shards)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
        rows.append(row)
        cells = [
            f"{1e3 * row[f'{name}_s'] / num_shards:.2f} ({1e3 * row[f'{name}_cpu_s'] / num_shards:.2f} CPU)"
            for name in ("planning", "resume_scan", "driver")
        ]
        memory = f"{row['driver_rss_mb'][0]:.0f}, {row['driver_rss_mb'][-1]:.0f}"
        print(f"| {num_shards} | {' | '.join(cells)} | {memory} |", flush=True)
    if flags.json:
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "load_average": os.getloadavg()}
        result = {"benchmark": "many_shards", "machine": machine, "ray": ray.__version__, "workers": WORKERS}
        flags.json.write_text(json.dumps(result | {"results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
