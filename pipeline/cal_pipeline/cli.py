"""`cal-precompute`: measure how much the image raises each caption token's logit, and write annotated Parquet shards.

Checks everything that can be checked before work, then hands the shards to Ray.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

from rich.console import Console

from cal_pipeline.arguments import chosen, parse_config
from cal_pipeline.console import printing
from cal_pipeline.encoding.contrast_images import save_contrast_images
from cal_pipeline.output.clean import clean
from cal_pipeline.output.heartbeat import Heartbeat, now
from cal_pipeline.output.resume import unplanned
from cal_pipeline.output.store import open_store
from cal_pipeline.output.traces import Traces
from cal_pipeline.output.verify import print_verification, verify
from cal_pipeline.runtime.cluster import RunOutcome
from cal_pipeline.runtime.config import PrecomputeConfig, maintenance_config
from cal_pipeline.runtime.plan import Job, cluster_of, prepare
from cal_pipeline.runtime.progress import ProgressListener
from cal_pipeline.runtime.report import RunReport, not_ok, print_report, projection
from cal_pipeline.runtime.signals import Interruption
from cal_pipeline.runtime.watchdog import Watchdog
from cal_schemas.errors import CalError, ConfigError

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
EXIT_DONE, EXIT_SHARDS_FAILED, EXIT_REFUSED = 0, 1, 2
_log = logging.getLogger("cal-precompute")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Console entry point; exits 0 all done, 1 shards or too many rows failed, 2 refused, 130, 143 interrupted."""
    sys.exit(run(argv))


@printing()
def run(argv: Sequence[str] | None = None) -> int:
    """The same as an exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "boto3", "botocore", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    progress = ""
    with Interruption() as interruption:
        try:
            if chosen(PrecomputeConfig, ("verify", "clean"), argv):
                return _maintain(argv)
            config = parse_config(PrecomputeConfig, argv, program="cal-precompute", description=__doc__ or "")
            job = prepare(config)
            if config.dry_run:
                _print_plan(job)
                return EXIT_SHARDS_FAILED if job.broken else EXIT_DONE
            return _execute(job, interruption)
        except CalError as error:
            print(f"cal-precompute: {error}", file=sys.stderr)  # noqa: T201
            return EXIT_REFUSED
        except OSError as error:
            if error.errno not in _DISK_TROUBLE:
                raise
            resume = "Finished shards are intact; the same command resumes"
            print(f"cal-precompute: stopped: {error}. {resume}", file=sys.stderr)  # noqa: T201
            return EXIT_REFUSED
        except InterruptedRunError as error:
            progress = f"; {error}"
        except KeyboardInterrupt:
            pass
    print(f"\ncal-precompute: {interruption.words}{progress}; run the same command to resume", file=sys.stderr)  # noqa: T201
    return interruption.exit_code


def _maintain(argv: Sequence[str] | None) -> int:
    """`--verify` and `--clean`: need no model, no data and no Ray."""
    config = parse_config(maintenance_config(), argv, program="cal-precompute", description=__doc__ or "")
    if config.clean and config.dry_run:
        raise ConfigError("--clean removes files, and --dry_run does nothing: give one of them")
    store = open_store(config.output_dir, "maintenance")
    if config.clean:
        removed = clean(store)
        for item in removed:
            print(f"removed {item}")  # noqa: T201
        print(f"{len(removed)} leftovers removed from {store.output_dir}")  # noqa: T201
    if not config.verify:
        return EXIT_DONE
    found = verify(store.output_dir)
    print_verification(found, store.output_dir)
    return EXIT_DONE if found.ok else EXIT_SHARDS_FAILED


class InterruptedRunError(Exception):
    """A signal ended the run; the message says how far it had come."""


class RunAbortedError(CalError):
    """The run stopped before its end, and trying further would not help."""


def _print_plan(job: Job) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for state, shards in (("done", job.progress.done), ("pending", job.progress.pending)):
        for shard in shards:
            if shard.problem is None:
                console.print(f"{state:8}{shard.num_rows:8} rows  {shard.name}", markup=False)
    for shard in job.broken:
        console.print(f"FAILED {shard.name}: {shard.problem}", markup=False)
    if bad := not_ok(job.statuses_before()):
        console.print(f"of the rows that are done {bad}", markup=False)
    rows = sum(shard.num_rows for shard in job.todo)
    console.print(
        f"{len(job.progress.done)} shards done, {len(job.progress.pending)} pending; this run would measure "
        f"{len(job.todo)} shards with {rows} rows. "
        f"{f'{len(job.broken)} cannot be read' if job.broken else 'Model, data and output are in order'}; "
        "nothing was started.",
        markup=False,
    )


def _save_contrast_images(job: Job) -> None:
    config, folder = job.config, job.settings.store.internal / "contrast_images"
    count = save_contrast_images(
        (*job.progress.done, *job.progress.pending),
        config.contrast_spec(),
        folder,
        count=config.save_contrast_images,
        max_image_pixels=config.max_image_pixels,
    )
    _log.info("%d images and their perturbed forms are in %s", count, folder)


def _execute(job: Job, interruption: Interruption) -> int:
    # Ray is imported only by those who run it.
    from cal_pipeline.runtime import ray_driver

    config, store = job.config, job.settings.store
    started, at = now(), time.monotonic()
    heartbeat, traces = Heartbeat(store.internal, started), Traces(store)
    if others := heartbeat.others():
        _log.warning(
            "another driver works on this output: %s. Both are safe, but work may be done twice", "; ".join(others)
        )
    else:
        store.clear_staging(everybodys=True)
    outcome = RunOutcome()
    interrupted = False
    try:
        store.prepare()
        heartbeat.beat()
        plan = (*job.progress.done, *job.progress.pending)
        listed = json.dumps([asdict(shard) for shard in plan], indent=1)
        (store.internal / "plan.json").write_text(f"{listed}\n", encoding="utf-8")
        if config.save_contrast_images:
            _save_contrast_images(job)
        if job.todo:
            rows = sum(shard.num_rows for shard in job.todo)
            cluster = cluster_of(job)
            _log.info("%d shards with %d rows to measure, %d done; more than %d rows not ok would end the run "
                      "(--max_error_fraction %g)", len(job.todo), rows, len(job.progress.done),
                      cluster.max_rows_not_ok, config.max_error_fraction)  # fmt: skip

            def check() -> None:
                watchdog.alive()
                interruption.check()

            with (
                Watchdog() as watchdog,
                ray_driver.ray_session(cluster, starting=interruption.kept),
                ProgressListener(len(job.todo), rows, heartbeat.beat, check) as listener,
            ):
                ray_driver.run_shards(job.todo, job.settings, cluster, store.logs, listener, outcome)
            if not outcome.aborted and (theirs := unplanned(plan, store)):
                outcome.aborted = (
                    f"{theirs[0]} is not part of this run's plan, and holds rows of its data: another driver, with "
                    "another --rows_per_shard or --limit, published it meanwhile. Remove its shards, or choose "
                    "another --output_dir"
                )
    except ConfigError:  # There is no Ray.
        outcome.refused = not outcome.reports
        raise
    except KeyboardInterrupt:
        interrupted = True
        outcome.aborted = interruption.words
    finally:
        store.clear_staging()
        heartbeat.stop()
        if outcome.refused and not heartbeat.others():
            traces.remove()
    if outcome.refused:
        raise ConfigError(outcome.aborted)
    outcome.failed = {shard.name: str(shard.problem) for shard in job.broken} | outcome.failed
    report = RunReport(
        run_id=store.run_id,
        config=asdict(config),
        fingerprint=job.settings.spec.fingerprint(),
        started=started,
        seconds=time.monotonic() - at,
        workers=outcome.workers,
        devices=outcome.devices,
        seconds_to_first_worker=(outcome.first_worker_at or at) - at,
        shards_done_before=len(job.progress.done),
        statuses_before=dict(job.statuses_before()),
        shards=outcome.reports,
        failed=outcome.failed,
        aborted=outcome.aborted,
        retries=outcome.retries,
    )
    path = report.write(store.internal / "reports")
    if interrupted:
        raise InterruptedRunError(f"{len(outcome.reports)} of {len(job.todo)} shards were done")
    print_report(report, config.output_dir, path)
    if outcome.aborted and not outcome.too_many_not_ok:
        raise RunAbortedError(f"stopped: {outcome.aborted}. Finished shards are intact; the same command resumes")
    if report.total("rows") and (config.limit is not None or config.sample is not None):
        print(projection(report, job.rows_of_all))  # noqa: T201
    if outcome.too_many_not_ok:
        print(  # noqa: T201
            f"cal-precompute: stopped: {outcome.too_many_not_ok} (--max_error_fraction {config.max_error_fraction:g}; "
            "1 never stops). The rows above say why; finished shards are intact, the same command goes on, and "
            "--redo_status measures such rows again",
            file=sys.stderr,
        )
    elif report.none_is_ok():
        print("cal-precompute: no row is ok: see above", file=sys.stderr)  # noqa: T201
    return EXIT_SHARDS_FAILED if outcome.failed or outcome.too_many_not_ok or report.none_is_ok() else EXIT_DONE


if __name__ == "__main__":
    main()
