"""Plans a run of `cal-precompute`: everything is checked that can be checked before work, nothing is started."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cal_pipeline.annotate import AnnotateOptions
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_pipeline.encoding.templates import warn_of_other_templates
from cal_pipeline.measuring.self_check import encode_questions
from cal_pipeline.models.checkpoint import check_image_tokens, check_weights
from cal_pipeline.models.directory import model_directory
from cal_pipeline.models.loading import (
    brings_code,
    check_architecture,
    load_config,
    load_meta_model,
    load_processor,
    weights_digest,
)
from cal_pipeline.models.quantization import resolve_quantization
from cal_pipeline.output.resume import Progress, compare_with_output
from cal_pipeline.output.store import Store, open_store
from cal_pipeline.runtime.cluster import Cluster
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.devices import gpus_per_worker, validate_device, warn_of_crowding
from cal_pipeline.runtime.worker import WorkerSettings, library_versions, store_environment
from cal_pipeline.sources.first_images import look_at_images
from cal_pipeline.sources.first_rows import look_at_rows
from cal_pipeline.sources.hub import hub_name
from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import Source, plan_shards
from cal_pipeline.sources.shard import Shard, limit_rows, sample_rows
from cal_schemas.annotated import annotated_schema
from cal_schemas.errors import ConfigError
from cal_schemas.metadata import read_shard_metadata
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import lies_in, location

_log = logging.getLogger("cal-precompute")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A checked run: everything is known, nothing has been started."""

    config: PrecomputeConfig
    settings: WorkerSettings
    progress: Progress
    todo: tuple[Shard, ...]
    broken: tuple[Shard, ...]
    """Shards whose source planning could not read: they have failed, the others go on."""
    gpus_per_worker: float
    rows_of_all: int
    """Rows of the whole input, of which a subset is a part."""
    rows_fit: bool
    """False where of the rows of a data path that were looked at none can be measured."""

    def statuses_before(self, gone: Iterable[str] = ()) -> Counter[str]:
        """Counts rows of finished shards that this run leaves as they are, by status, without those named."""
        kept = {shard.name for shard in self.progress.done} - {shard.name for shard in self.todo} - {*gone}
        return sum((self.progress.statuses[name] for name in kept), Counter[str]())


def make_plan(config: PrecomputeConfig, sources: Sequence[Sequence[Source]] | None = None) -> Plan:
    """Checks model, data, processor and weights (cheapest first), and what is already done.

    `sources` are what `validate_paths` returned, which comes before.

    Raises ConfigError or FormatError with one message for whatever stands in the way; leaves nothing behind.
    """
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    store = open_store(config.output_dir, run_id)
    gpus = gpus_per_worker(config)
    validate_device(config, gpus)
    directory = model_directory(config.model_name_or_path, config.revision, trust_remote_code=config.trust_remote_code)
    check_architecture(directory, trust_remote_code=config.trust_remote_code)
    settings = config.processor_settings()
    if not gpus and str(settings.get("device", "cpu")).startswith("cuda"):
        raise ConfigError(f"--processor_kwargs device {settings['device']}: workers have no GPU (--gpus_per_worker 0)")
    processor = load_processor(
        directory, kwargs=settings, backend=config.processor_backend, trust_remote_code=config.trust_remote_code
    )
    if config.template == "auto":
        warn_of_other_templates(processor, directory)
    if not (config.trust_remote_code and brings_code(directory)):  # That runs in the workers only.
        meta_model = load_meta_model(directory)
        check_weights(directory, meta_model)
        check_image_tokens(processor, meta_model)
        warn_of_crowding(meta_model, config, gpus)
    shards = plan_shards(
        config.data_path, config.image_folder, data_format=config.data_format, rows_per_shard=config.rows_per_shard,
        list_broken=True, sources=sources,
    )  # fmt: skip
    _validate_output(config.output_dir, shards)
    rows_of_all = sum(shard.source.num_rows for shard in shards)
    if config.limit is not None:
        shards = limit_rows(shards, config.limit)
    if config.sample is not None:
        shards = sample_rows(shards, config.sample, config.seed)
        if not shards:
            raise ConfigError(f"--sample {config.sample:g} draws none of the {rows_of_all} rows: raise it")
    encoder = _encoder(config, store, processor)
    spec = _measurement(config, directory, encoder)
    options = _options(config, shards)
    progress = compare_with_output(shards, spec=spec, schema=options.schema, carry=options.carry, store=store)
    redo = config.redo_statuses()
    todo = (*(shard for shard in progress.pending if shard.problem is None), *progress.done_with(redo))
    look_at_images(todo, max_image_pixels=config.max_image_pixels)
    return Plan(
        config=config,
        progress=progress,
        todo=todo,
        broken=tuple(shard for shard in progress.pending if shard.problem is not None),
        gpus_per_worker=gpus,
        rows_of_all=rows_of_all,
        rows_fit=look_at_rows(todo, encoder.check),
        settings=WorkerSettings(
            # A local path must not depend on the worker's working directory; a hub id is resolved on its node.
            model_name_or_path=str(directory.resolve())
            if Path(config.model_name_or_path).is_dir()
            else config.model_name_or_path,
            dtype=config.dtype,
            quantization=config.quantization,
            trust_remote_code=config.trust_remote_code,
            device="cuda" if gpus else "cpu",
            num_devices=max(1, int(gpus)),
            spec=spec,
            store=store,
            options=options,
            redo=redo,
            environment=store_environment(),
            log_format=config.log_format,
        ),
    )


def _validate_output(output_dir: str, shards: Sequence[Shard]) -> None:
    inside = location(output_dir).resolve()
    if own := next((uri for uri in {shard.source.uri for shard in shards} if lies_in(location(uri), inside)), None):
        raise ConfigError(f"{own} lies in --output_dir {output_dir}: keep input and output apart")
    for path in {location(given) for given in {shard.source.data_path for shard in shards} if hub_name(given) is None}:
        if lies_in(inside, path.resolve()) and path.is_dir():
            raise ConfigError(f"--output_dir {output_dir} lies in --data_path {path}, and would be its input next time")


def _encoder(config: PrecomputeConfig, store: Store, processor: Any) -> Encoder:
    """As the workers have it; its date is that of the shards that are there."""
    encoder = Encoder(
        processor,
        template=config.template,
        image_aspect_ratio=config.image_aspect_ratio,
        max_length=config.max_length,
        truncation=config.truncation,
        processor_kwargs=config.processor_settings(),
    )
    if encoder.date is not None:
        begun = next((read_shard_metadata(path).spec.label.date for path in store.finished()), None)
        encoder = encoder.dated(begun)
        _log.info("the chat template reads the clock: in every row it is %s, which is part of the fingerprint",
                  encoder.date)  # fmt: skip
    return encoder


def _measurement(config: PrecomputeConfig, directory: Path, encoder: Encoder) -> MeasurementSpec:
    local = Path(config.model_name_or_path).is_dir()
    # Here, and not only in the workers: a template that fails on every row is refused before any of them starts.
    contrast = config.contrast_spec()
    encode_questions(encoder, config.model_name_or_path, contrast)
    return MeasurementSpec(
        label=label_spec(encoder),
        input=input_spec(encoder),
        contrast=contrast,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        model_id=directory.resolve().name if local else config.model_name_or_path,
        revision=config.revision,
        weights_digest=weights_digest(directory),
        reference_saw_data=config.reference_saw_data,
        quantization=resolve_quantization(
            config.quantization, load_config(directory, trust_remote_code=config.trust_remote_code)
        ),
    )


def _options(config: PrecomputeConfig, shards: Sequence[Shard]) -> AnnotateOptions:
    carry, why = config.resolved_carry(sum(shard.embedded_bytes for shard in shards))
    _log.info(why)
    several = len(config.data_path) > 1
    return AnnotateOptions(
        schema=annotated_schema(
            carry=carry, extra_columns=config.extra(), source_column=several, pass_through=pass_through_fields(shards)
        ),
        carry=carry,
        tokens_per_batch=config.tokens_per_batch,
        extra_columns=config.extra(),
        source_label=several,
        encode_threads=config.encode_threads,
        max_image_pixels=config.max_image_pixels,
        library_versions=library_versions(),
    )


def cluster_of(plan: Plan) -> Cluster:
    """Says what the driver asks of Ray for a plan."""
    config = plan.config
    return Cluster(
        num_workers=min(config.num_workers, max(1, len(plan.todo))),
        gpus_per_worker=plan.gpus_per_worker,
        cpus_per_worker=config.cpus_per_worker,
        address=config.ray_address,
        max_tries=config.max_tries,
        max_rows_not_ok=math.floor(config.max_error_fraction * sum(shard.num_rows for shard in plan.todo)),
        shard_timeout_s=config.shard_timeout_s,
        start_timeout_s=config.start_timeout_s,
        idle_timeout_s=config.idle_timeout_s,
    )
