"""Carries out a plan: starts Ray, hands the shards out, and reports what became of them."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from cal_pipeline.encoding.contrast_images import save_contrast_images
from cal_pipeline.log_lines import say
from cal_pipeline.output.heartbeat import Heartbeat, now
from cal_pipeline.output.resume import compare_with_plan
from cal_pipeline.output.traces import Traces
from cal_pipeline.runtime.cluster import RunOutcome
from cal_pipeline.runtime.faults import EXIT_DONE, EXIT_SHARDS_FAILED, RunAbortedError
from cal_pipeline.runtime.metrics import RunMetrics, served
from cal_pipeline.runtime.plan import Plan, cluster_of
from cal_pipeline.runtime.progress import ProgressListener
from cal_pipeline.runtime.ray_driver import ShardRun
from cal_pipeline.runtime.ray_metrics import RayMetrics
from cal_pipeline.runtime.ray_notices import ray_notices
from cal_pipeline.runtime.ray_session import ray_session
from cal_pipeline.runtime.report import RunReport, print_report, projection
from cal_pipeline.runtime.result import PrecomputeResult
from cal_pipeline.runtime.signals import Interruption
from cal_pipeline.runtime.state import RunState
from cal_pipeline.runtime.watchdog import Watchdog
from cal_pipeline.sources.shard import Shard
from cal_schemas.counted import counted
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.redaction import redacted
from cal_schemas.storage.locations import write_whole

_log = logging.getLogger("cal-precompute")


def execute(plan: Plan, interruption: Interruption) -> PrecomputeResult:
    """Measures the plan's shards, and prints and writes the report; returns what it came to.

    Raises ConfigError where no worker can start, RunAbortedError where going on was useless, and KeyboardInterrupt,
    which says how far the run had come, after a signal.
    """
    config, store = plan.config, plan.settings.store
    started, at = now(), time.monotonic()
    heartbeat, traces = Heartbeat(store.internal, started), Traces(store)
    if others := heartbeat.others():
        _log.warning(
            "another driver works on this output: %s. Both are safe, but work may be done twice", "; ".join(others)
        )
    else:
        store.clear_staging(everybodys=True)
    shards = (*plan.progress.done, *plan.progress.pending)
    outcome = RunOutcome()
    interrupted = False
    try:
        store.prepare()
        heartbeat.start()
        listed = json.dumps([asdict(shard) for shard in shards], indent=1)
        write_whole(store.internal / "plan.json", f"{listed}\n")
        if config.save_contrast_images:
            folder = store.internal / "contrast_images"
            count = save_contrast_images(
                shards, config.contrast_spec(), folder, count=config.save_contrast_images,
                max_image_pixels=config.max_image_pixels,
            )  # fmt: skip
            _log.info("%d images and their perturbed forms are in %s", count, folder)
        if plan.todo:
            _measure(plan, heartbeat, interruption, outcome)
            if not outcome.refused:
                _compare_with_plan(plan, shards, outcome)
    except ConfigError:  # There is no Ray.
        outcome.refused = not outcome.reports
        raise
    except KeyboardInterrupt:
        interrupted = True
        outcome.aborted = interruption.message
    finally:
        with suppress(OSError):  # Of an output that is ill by now: it is said below.
            store.clear_staging()
        heartbeat.stop()
        if outcome.refused and not heartbeat.others():
            traces.remove()
    if outcome.refused:
        raise ConfigError(outcome.aborted)
    outcome.failed = {shard.name: str(shard.problem) for shard in plan.broken} | outcome.failed
    report = RunReport(
        run_id=store.run_id,
        # As the workers had it: a relative path would lead elsewhere from another directory.
        config=asdict(config) | {"model_name_or_path": plan.settings.model_name_or_path},
        fingerprint=plan.settings.spec.fingerprint(),
        started=started,
        seconds=time.monotonic() - at,
        workers=outcome.workers,
        devices=outcome.devices,
        seconds_to_first_worker=(outcome.first_worker_at or at) - at,
        shards_done_before=sum(shard.name not in outcome.failed for shard in plan.progress.done),
        statuses_before=dict(plan.statuses_before(outcome.failed)),
        shards=outcome.reports,
        failed=outcome.failed,
        aborted=outcome.aborted,
        retries=outcome.retries,
        failed_starts=outcome.failed_starts,
        seconds_short=outcome.seconds_short,
    )
    path = in_output = report.write(store.internal / "reports")
    if in_output is None:
        with suppress(OSError):
            path = report.write(Path(tempfile.mkdtemp(prefix="cal-report-")))
        if path is not None:
            _log.warning("the report is in %s", path)
    if interrupted:
        done = {report.name for report in outcome.reports}
        with suppress(OSError, FormatError):  # What was published a moment ago may not have reached this program.
            there = compare_with_plan(shards, store)[0] if in_output else set()
            done |= there - {shard.name for shard in plan.progress.done}
        raise KeyboardInterrupt(f"{len(done)} of {len(plan.todo)} shards were done")
    print_report(report, config.output_dir, path)
    if outcome.aborted and not outcome.too_many_not_ok:
        raise RunAbortedError(outcome.aborted)
    if report.total("rows") and sum(shard.num_rows for shard in shards) < plan.rows_of_all:  # --limit, --sample
        print(projection(report, plan.rows_of_all))  # noqa: T201
    if outcome.too_many_not_ok:
        say(
            "cal-precompute",
            f"stopped: {outcome.too_many_not_ok} (--max_error_fraction {config.max_error_fraction:g}; 1 never stops). "
            "The rows above say why; finished shards are intact, and the same command goes on. Where it was images "
            "that are mended now, --redo_status measures such rows again; where a data file is mended, remove its "
            "shards or choose another --output_dir",
        )
    elif report.none_is_ok():
        say("cal-precompute", "no row is ok: see above")
    failed = outcome.failed or outcome.too_many_not_ok or report.none_is_ok() or in_output is None
    return PrecomputeResult(
        output_dir=config.output_dir,
        exit_code=EXIT_SHARDS_FAILED if failed else EXIT_DONE,
        shards=len(report.shards),
        shards_done_before=report.shards_done_before,
        statuses=dict(report.statuses()),
        statuses_before=report.statuses_before,
        label_tokens=report.total("label_tokens"),
        failed=report.failed,
        seconds=report.seconds,
        report=None if path is None else str(path),
    )


def _compare_with_plan(plan: Plan, shards: Sequence[Shard], outcome: RunOutcome) -> None:
    """Looks at the output once more: what was done and is not there has failed; another driver's split ends the run."""
    store = plan.settings.store
    try:
        there, theirs = compare_with_plan(shards, store)
    except (OSError, FormatError) as error:  # The latter for a file of somebody else's that is no shard.
        outcome.aborted = outcome.aborted or (
            f"whether all shards are in --output_dir {store.output_dir} cannot be seen: {error}"
        )
        return
    done = [shard.name for shard in plan.progress.done] + [report.name for report in outcome.reports]
    gone = dict.fromkeys((name for name in done if name not in there), "done, but its file is gone from --output_dir")
    outcome.failed |= gone
    outcome.reports = [report for report in outcome.reports if report.name not in gone]
    if theirs and not outcome.aborted:
        outcome.aborted = (
            f"{theirs[0]} is not part of this run's plan, and holds rows of its data: another driver, with another "
            "--rows_per_shard or --limit, published it meanwhile. Remove its shards, or choose another --output_dir"
        )


def _measure(plan: Plan, heartbeat: Heartbeat, interruption: Interruption, outcome: RunOutcome) -> None:
    rows, cluster, store = sum(shard.num_rows for shard in plan.todo), cluster_of(plan), plan.settings.store
    _log.info("%s with %s to measure, %d done; more than %s not ok would end the run (--max_error_fraction %g)",
              counted(len(plan.todo), "shard"), counted(rows, "row"), len(plan.progress.done),
              counted(int(cluster.max_rows_not_ok), "row"), plan.config.max_error_fraction)  # fmt: skip

    state = RunState(
        output_dir=redacted(str(plan.settings.store.output_dir)),
        planned=[shard.name for shard in (*plan.progress.done, *plan.progress.pending)],
        done=[shard.name for shard in plan.progress.done],
        broken={shard.name: str(shard.problem) for shard in plan.broken},
        statuses_before=plan.statuses_before(),
        num_rows=rows,
        num_workers=cluster.num_workers,
        outcome=outcome,
    )
    metrics = RunMetrics(state)
    heartbeat.say(**state.facts())

    def check() -> None:
        watchdog.alive()
        interruption.check()

    with (
        Watchdog() as watchdog,
        served(metrics, plan.config.metrics_address) as state.metrics,
        ray_notices(store.logs / f"ray-{store.run_id}.log"),
        ray_session(cluster, starting=interruption.kept),
        ProgressListener(state, len(plan.todo), heartbeat, check, RayMetrics(metrics).publish) as listener,
    ):
        _log.info("metrics for Prometheus are at %s (--metrics_address)", state.metrics)
        ShardRun(plan.todo, plan.settings, cluster, listener, outcome).run()
