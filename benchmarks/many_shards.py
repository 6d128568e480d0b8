"""Measures what the driver spends on many tiny shards: time and memory of plan, resume scan, handing out.

    python benchmarks/many_shards.py --shards 1000 2500 5000 10000

Shards are real files; the workers are real Ray actors that answer at once and measure nothing, so that what is left is
the driver's own part. Every row is measured in a process of its own. Needs Ray.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cal_pipeline.output.resume import compare_with_output
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.output.store import LocalStore
from cal_pipeline.runtime import ray_driver, ray_session
from cal_pipeline.runtime.cluster import Cluster, RunOutcome
from cal_pipeline.runtime.worker import Outcome
from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard
from cal_schemas.annotated import AnnotatedRow, MeasuredSample, annotated_schema
from cal_schemas.sample import Sample
from cal_schemas.writer import ShardWriter
from measuring import Stopwatch, in_own_process, resident_mb
from reporting import begin, make_parser, print_table, write_report
from workload import SYNTHETIC, synthetic_metadata

WORKERS = 2


class IdleWorker(ray_driver._Actor.__ray_metadata__.modified_class):  # type: ignore[attr-defined,misc]
    """Stands where a worker stands and says at once that the shard is done."""

    def start(self, settings: object) -> Outcome:
        return Outcome(kind="done")

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
            self.rss_mb.append(resident_mb("VmRSS"))


def write_source(folder: Path, num_shards: int) -> None:
    table = pa.Table.from_pylist(
        [{"id": "1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "score": 1}]
    )
    for number in range(num_shards):
        sub = folder / f"{number // 1000:03d}"
        sub.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, sub / f"{number:06d}.parquet")


def finish_all(source: Path, store: LocalStore) -> None:
    """Publishes the shards as a worker would, each with one row."""
    row = AnnotatedRow(
        sample=Sample(sample_id="1", images=(), messages=None, pass_through={"score": 1}),
        sample_key="k",
        measured=MeasuredSample(
            label_ids=np.array([1], np.int32),
            label_positions=np.array([1], np.int32),
            delta_logits=np.array([1.0], np.float32),
        ),
        num_tokens=2,
    )
    shards = plan_shards([str(source)])
    schema = annotated_schema(carry="paths", pass_through=pass_through_fields(shards))
    for shard in shards:
        with store.staging(shard.name) as partial:
            with ShardWriter(partial, schema, replace(synthetic_metadata(1), source=shard.source)) as writer:
                writer.write(row)
            final = store.path(shard.name)
            final.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(final)  # Without the fsync of a commit: ten thousand of them measure the disk.


def measure(num_shards: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        source, store = Path(name) / "data", LocalStore(output_dir=Path(name) / "out")
        write_source(source, num_shards)
        store.prepare()
        before = resident_mb("VmRSS")
        watch = Stopwatch()
        shards = plan_shards([str(source)])
        schema = annotated_schema(carry="paths", pass_through=pass_through_fields(shards))
        planning = watch.read("planning")
        planned_mb = resident_mb("VmRSS") - before
        # Elsewhere: what a thousand writers leave in a process's memory is not the driver's.
        in_own_process(finish_all, source, store)
        written_mb = resident_mb("VmRSS")
        watch = Stopwatch()
        progress = compare_with_output(shards, spec=SYNTHETIC, schema=schema, carry="paths", store=store)
        resume = watch.read("resume_scan")
        assert len(progress.done) == num_shards
        scanned_mb = resident_mb("VmRSS") - written_mb
        memory_watch, handed = hand_out(shards, store)
    times = {name: round(value, 3) for name, value in (planning | resume | handed).items()}
    memory = {"planning_mb": round(planned_mb, 1), "resume_scan_mb": round(scanned_mb, 1)}
    memory |= {"driver_rss_mb": [round(value, 1) for value in memory_watch.rss_mb]}
    return {"shards": num_shards} | times | memory


def hand_out(shards: list[Shard], store: LocalStore) -> tuple[Watch, dict[str, float]]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which Ray's workers could not import
    ray_driver._Actor = ray.remote(IdleWorker)
    cluster = Cluster(
        num_workers=WORKERS, gpus_per_worker=0, cpus_per_worker=1, address=None, max_tries=3, shard_timeout_s=600,
        start_timeout_s=600, idle_timeout_s=600,
    )  # fmt: skip
    watch, outcome = Watch(len(shards)), RunOutcome()
    settings = type("Settings", (), {"store": store})
    with ray_session.ray_session(cluster):
        cpu = time.process_time()
        ray_driver.ShardRun(shards, settings, cluster, watch, outcome).run()  # type: ignore[arg-type]
        seconds = time.monotonic() - watch.first_at
        cpu = time.process_time() - cpu
    assert len(outcome.reports) == len(shards)
    return watch, {"driver_s": seconds, "driver_cpu_s": cpu}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 2_500, 5_000, 10_000])
    flags = begin(parser)
    results = [in_own_process(measure, num_shards) for num_shards in flags.shards]
    stages = ("planning", "resume_scan", "driver")
    print_table(
        ["shards", "planning, ms each", "resume scan, ms each", "handing out, ms each", "driver, MB at 10 % and 100 %"],
        [[row["shards"],
          *(f"{1e3 * row[f'{stage}_s'] / row['shards']:.2f} ({1e3 * row[f'{stage}_cpu_s'] / row['shards']:.2f} CPU)"
            for stage in stages),
          f"{row['driver_rss_mb'][0]:.0f}, {row['driver_rss_mb'][-1]:.0f}"] for row in results],
    )  # fmt: skip
    ratios = {
        f"{stage}_each_of_{results[-1]['shards']}/{stage}_each_of_{results[0]['shards']}": (
            results[-1][f"{stage}_cpu_s"] / results[-1]["shards"] * results[0]["shards"] / results[0][f"{stage}_cpu_s"]
        )
        for stage in stages
    }
    write_report("many_shards", flags, settings={"workers": WORKERS}, results=results, ratios=ratios)


if __name__ == "__main__":
    main()
