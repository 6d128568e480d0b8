"""`cal-precompute`: measure how much the image raises each caption token's logit, and write annotated Parquet shards.

Checks everything that can be checked before work, then hands the shards to Ray.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from cal_pipeline.annotate import AnnotateOptions
from cal_pipeline.arguments import parse_config
from cal_pipeline.clean import clean
from cal_pipeline.cluster import Cluster, RunOutcome
from cal_pipeline.config import PrecomputeConfig, maintenance_config
from cal_pipeline.contrast_images import save_contrast_images
from cal_pipeline.encoding_spec import input_spec, label_spec
from cal_pipeline.heartbeat import Heartbeat
from cal_pipeline.interruption import Interruption
from cal_pipeline.loading import check_architecture, load_processor, model_directory, weights_digest
from cal_pipeline.progress import ProgressListener
from cal_pipeline.quantization import check_quantization
from cal_pipeline.report import RunReport, now, print_report, projection
from cal_pipeline.resume import Progress, compare_with_output, shards_to_redo
from cal_pipeline.shards import Shard, carried_fields, embedded_image_bytes, limit_rows, plan_shards, sample_rows
from cal_pipeline.store import open_store
from cal_pipeline.verify import print_verification, verify
from cal_pipeline.watchdog import Watchdog
from cal_pipeline.worker import (
    EncoderSettings,
    WorkerSettings,
    encode_questions,
    library_versions,
    store_environment,
)
from cal_schemas.annotated import annotated_schema
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.locations import lies_in, location
from cal_schemas.spec import MeasurementSpec

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
EXIT_DONE, EXIT_SHARDS_FAILED, EXIT_REFUSED = 0, 1, 2
_log = logging.getLogger("cal-precompute")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A checked run: everything is known, nothing has been started."""

    config: PrecomputeConfig
    settings: WorkerSettings
    progress: Progress
    todo: tuple[Shard, ...]
    broken: tuple[Shard, ...]
    """Shards whose source planning could not read: they have failed, the others go on."""
    gpus_per_worker: float
    rows_of_all: int
    """Rows of the whole input, of which a pilot takes a part."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Console entry point; exits 0 all done, 1 shards or too many rows failed, 2 refused, 130, 143 interrupted."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """The same as an exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "boto3", "botocore", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    progress = ""
    with Interruption() as interruption:
        try:
            if {"--verify", "--clean"} & set(sys.argv[1:] if argv is None else argv):
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


def prepare(config: PrecomputeConfig) -> _Job:
    """Checks output, data and model in that order (cheapest first), and what is already done.

    Raises ConfigError or FormatError with one message for whatever stands in the way; writes nothing but `.cal/`.
    """
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    store = open_store(config.output_dir, run_id)
    if not config.dry_run:
        store.prepare()
    else:
        store.check_writable()
    directory = model_directory(config.model_name_or_path, config.revision, trust_remote_code=config.trust_remote_code)
    check_architecture(directory, trust_remote_code=config.trust_remote_code)
    shards = plan_shards(
        config.data_path, config.image_folder, data_format=config.data_format, rows_per_shard=config.rows_per_shard,
        list_broken=True,
    )  # fmt: skip
    _refuse_own_output(config.output_dir, shards)
    rows_of_all = sum(shard.source.num_rows for shard in shards)
    if config.limit is not None:
        shards = limit_rows(shards, config.limit)
    if config.sample is not None:
        shards = sample_rows(shards, config.sample, config.seed)
        if not shards:
            raise ConfigError(f"--sample {config.sample:g} draws none of the {rows_of_all} rows: raise it")
    spec, encoder_settings = _measurement(config, directory)
    options = _options(config, shards)
    progress = compare_with_output(shards, spec=spec, schema=options.schema, carry=options.carry, store=store)
    redo = config.redo_statuses()
    gpus = _gpus_per_worker(config)
    _check_device(config, gpus)
    return _Job(
        config=config,
        progress=progress,
        todo=(
            *(shard for shard in progress.pending if shard.problem is None),
            *(shards_to_redo(progress.done, store, redo) if redo else ()),
        ),
        broken=tuple(shard for shard in progress.pending if shard.problem is not None),
        gpus_per_worker=gpus,
        rows_of_all=rows_of_all,
        settings=WorkerSettings(
            # A local path must not depend on the worker's working directory; a hub id is resolved on its node.
            model_name_or_path=str(directory.absolute())
            if Path(config.model_name_or_path).is_dir()
            else config.model_name_or_path,
            dtype=config.dtype,
            quantization=config.quantization,
            trust_remote_code=config.trust_remote_code,
            device="cuda" if gpus else "cpu",
            num_devices=max(1, int(gpus)),
            encoder=encoder_settings,
            spec=spec,
            store=store,
            options=options,
            redo=redo,
            environment=store_environment(),
        ),
    )


def _refuse_own_output(output_dir: str, shards: Sequence[Shard]) -> None:
    inside = location(output_dir).resolve()
    if own := next((uri for uri in {shard.source.uri for shard in shards} if lies_in(location(uri), inside)), None):
        raise ConfigError(f"{own} lies in --output_dir {output_dir}: keep input and output apart")
    for path in {location(shard.source.data_path) for shard in shards}:
        if lies_in(inside, path.resolve()) and path.is_dir():
            raise ConfigError(f"--output_dir {output_dir} lies in --data_path {path}, and would be its input next time")


def _measurement(config: PrecomputeConfig, directory: Path) -> tuple[MeasurementSpec, EncoderSettings]:
    settings = EncoderSettings(
        template=config.template,
        image_aspect_ratio=config.image_aspect_ratio,
        max_length=config.max_length,
        truncation=config.truncation,
    )
    encoder = settings.build(load_processor(directory, trust_remote_code=config.trust_remote_code))
    local = Path(config.model_name_or_path).is_dir()
    # Here, and not only in the workers: a template that fails on every row is refused before any of them starts.
    contrast = config.contrast_spec()
    encode_questions(encoder, config.model_name_or_path, contrast)
    spec = MeasurementSpec(
        label=label_spec(encoder),
        input=input_spec(encoder),
        contrast=contrast,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        model_id=directory.resolve().name if local else config.model_name_or_path,
        revision=config.revision,
        weights_digest=weights_digest(directory),
        reference_saw_data=config.reference_saw_data,
        quantization=None if config.quantization == "none" else config.quantization,
    )
    return spec, settings


def _options(config: PrecomputeConfig, shards: Sequence[Shard]) -> AnnotateOptions:
    carry, why = config.resolved_carry(embedded_image_bytes(shards))
    _log.info(why)
    several = len(config.data_path) > 1
    return AnnotateOptions(
        schema=annotated_schema(
            carry=carry, extra_columns=config.extra(), source_column=several, carried=carried_fields(shards)
        ),
        carry=carry,
        tokens_per_batch=config.tokens_per_batch,
        extra_columns=config.extra(),
        source_label=several,
        encode_threads=config.encode_threads,
        max_image_pixels=config.max_image_pixels,
        library_versions=library_versions(),
    )


def _check_device(config: PrecomputeConfig, gpus: float) -> None:
    """What a worker without a GPU cannot do is refused here, and not by each worker as it starts."""
    if not gpus and config.attn_implementation.startswith("flash_attention"):
        raise ConfigError(
            f"--attn_implementation {config.attn_implementation} needs a GPU, and workers have none "
            "(--gpus_per_worker 0): use sdpa or eager"
        )
    if not (config.ray_address or os.environ.get("RAY_ADDRESS")):  # A cluster's nodes have packages of their own.
        check_quantization(config.quantization, "cuda" if gpus else "cpu")


def _gpus_per_worker(config: PrecomputeConfig) -> float:
    wanted = config.gpus_per_worker
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted is not None:
        if wanted > there and not (config.ray_address or os.environ.get("RAY_ADDRESS")):
            raise ConfigError(
                f"--gpus_per_worker {wanted:g}, but torch sees {there} GPUs on this machine: lower it (0 runs on the "
                "CPU), or name a cluster with --ray_address"
            )
        return wanted
    found = 1.0 if torch.cuda.is_available() else 0.0
    _log.info("--gpus_per_worker %g, because this machine has %s GPU", found, "a" if found else "no")
    return found


def _print_plan(job: _Job) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for state, shards in (("done", job.progress.done), ("pending", job.progress.pending)):
        for shard in shards:
            if shard.problem is None:
                console.print(f"{state:8}{shard.num_rows:8} rows  {shard.name}", markup=False)
    for shard in job.broken:
        console.print(f"FAILED {shard.name}: {shard.problem}", markup=False)
    rows = sum(shard.num_rows for shard in job.todo)
    console.print(
        f"{len(job.progress.done)} shards done, {len(job.progress.pending)} pending; this run would measure "
        f"{len(job.todo)} shards with {rows} rows. "
        f"{f'{len(job.broken)} cannot be read' if job.broken else 'Model, data and output are in order'}; "
        "nothing was started.",
        markup=False,
    )


def _save_contrast_images(job: _Job) -> None:
    config, folder = job.config, job.settings.store.internal / "contrast_images"
    count = save_contrast_images(
        (*job.progress.done, *job.progress.pending),
        config.contrast_spec(),
        folder,
        count=config.save_contrast_images,
        max_image_pixels=config.max_image_pixels,
    )
    _log.info("%d pictures and their perturbed forms are in %s", count, folder)


def _execute(job: _Job, interruption: Interruption) -> int:
    # Ray is imported only by those who run it.
    from cal_pipeline import ray_driver

    config, store = job.config, job.settings.store
    started, at = now(), time.monotonic()
    heartbeat = Heartbeat(store.internal, started)
    if others := heartbeat.others():
        _log.warning(
            "another driver works on this output: %s. Both are safe, but work may be done twice", "; ".join(others)
        )
    else:
        store.clear_staging(everybodys=True)
    heartbeat.beat()
    outcome = RunOutcome()
    interrupted = False
    try:
        plan = [asdict(shard) for shard in (*job.progress.done, *job.progress.pending)]
        (store.internal / "plan.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        if config.save_contrast_images:
            _save_contrast_images(job)
        if job.todo:
            rows = sum(shard.num_rows for shard in job.todo)
            _log.info("%d shards with %d rows to measure, %d done", len(job.todo), rows, len(job.progress.done))
            cluster = _cluster(job)

            def check() -> None:
                watchdog.alive()
                interruption.check()

            with (
                Watchdog() as watchdog,
                ray_driver.ray_session(cluster, after_init=interruption.install),
                ProgressListener(len(job.todo), rows, heartbeat.beat, check) as listener,
            ):
                ray_driver.run_shards(job.todo, job.settings, cluster, store.logs, listener, outcome)
    except KeyboardInterrupt:
        interrupted = True
        outcome.aborted = interruption.words
    finally:
        store.clear_staging()
        heartbeat.stop()
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
            f"cal-precompute: stopped: {outcome.too_many_not_ok} (--max_error_fraction {config.max_error_fraction:g}). "
            "The rows above say why; finished shards are intact, and --redo_status measures such rows again",
            file=sys.stderr,
        )
    return EXIT_SHARDS_FAILED if outcome.failed or outcome.too_many_not_ok else EXIT_DONE


def _cluster(job: _Job) -> Cluster:
    config = job.config
    return Cluster(
        num_workers=min(config.num_workers, max(1, len(job.todo))),
        gpus_per_worker=job.gpus_per_worker,
        cpus_per_worker=config.cpus_per_worker,
        address=config.ray_address,
        max_tries=config.max_tries,
        max_rows_not_ok=math.floor(config.max_error_fraction * sum(shard.num_rows for shard in job.todo)),
        shard_timeout_s=config.shard_timeout_s,
        start_timeout_s=config.start_timeout_s,
        idle_timeout_s=config.idle_timeout_s,
    )
