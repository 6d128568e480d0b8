"""Plans a run of cal-train: decides all that flags and files decide, and checks it, before the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.directory import model_directory
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Quantile
from cal_schemas.scores import SCORES, Score
from cal_schemas.spec import ContrastSpec, MeasurementSpec
from cal_schemas.storage.locations import location
from cal_trainer.config import TrainConfig
from cal_trainer.data.alignment import RowOptions
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.factory import (
    Examples,
    largest_of_first,
    make_dataset,
    make_evaluation_dataset,
    mean_tokens,
    train_sampler,
    validate_rows,
)
from cal_trainer.data.sampling import EpochSampler, StepShape
from cal_trainer.data.shared_memory import validate_shared_memory
from cal_trainer.data.sidecar import SidecarExamples
from cal_trainer.data.sources import check_sources
from cal_trainer.data.streaming import StreamSampler
from cal_trainer.objective.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.objective.drift import drift_batches
from cal_trainer.objective.weighting import UNIFORM, Weighting
from cal_trainer.run.base_model import plan_model
from cal_trainer.run.bounds import resolve_bounds
from cal_trainer.run.checkpoints import find_checkpoint
from cal_trainer.run.facts import RunFacts
from cal_trainer.run.parameters import parse_lr_multipliers
from cal_trainer.run.resuming import check_state, state_of
from cal_trainer.run.self_check import validate_batch_sizes
from cal_trainer.run.validation import prepare_output, validate_flags
from cal_trainer.source_flags import parse_shares, parse_weights
from cal_trainer.training_arguments import CalTrainingArguments

_log = logging.getLogger("cal-train")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run that is known to make sense: all that can be checked is, before any weight is read."""

    resume: Path | None
    """The checkpoint to go on from."""
    source: DeltaSource
    encoder: Encoder
    examples: Examples
    evaluation: Examples | None
    sampler: EpochSampler | StreamSampler
    collator: ExampleCollator
    tokens_per_row: float
    """Encoded ones, on average; about."""
    drift: Sequence[dict[str, Any]]
    """Batches to measure it on."""
    facts: RunFacts
    state: Mapping[str, Any]
    """What its checkpoints remember."""


def plan_run(config: TrainConfig, arguments: CalTrainingArguments) -> Plan:
    """Checks flags, then the base model's files, then the data: in the order of what a check costs."""
    evaluates = config.eval_path is not None
    validate_flags(arguments, dtype=config.dtype, evaluates=evaluates)
    resume = find_checkpoint(arguments.resume_from_checkpoint, Path(arguments.output_dir))
    source, weighting = _plan_weights(config, resume)
    source.check(weighting, arguments.gradient_accumulation_steps)
    multipliers = parse_lr_multipliers(config.lr_multipliers)
    directory = model_directory(
        str(config.model_name_or_path), config.revision, trust_remote_code=config.trust_remote_code
    )
    model = plan_model(config, arguments, directory, multipliers, resume)
    encoder = model.encoder
    validate_batch_sizes(encoder, arguments, evaluates=evaluates or config.drift_every > 0)
    reads = {
        "--model_name_or_path": [str(directory)],
        "--data_path": config.data_path,
        "--source_path": config.source_path,
        "--image_folder": config.image_folder,
        "--eval_path": [config.eval_path] if config.eval_path else [],
    }
    prepare_output(str(arguments.output_dir), resumes=resume is not None, adapters=config.lora_r > 0, reads=reads)
    rows = RowOptions(
        use_deltas=config.delta_source == "cached",
        score=config.resolved("score"),
        max_image_pixels=config.max_image_pixels,
        num_embeddings=model.num_embeddings,
    )
    examples = _training_examples(config, encoder, rows)
    spec: MeasurementSpec | None = getattr(examples, "spec", None)
    date = encoder.dated(spec.label.date).date if spec else encoder.date
    if date is not None:
        _log.info("the chat template reads the clock: in every row it is %s", date)
    sources = check_sources(examples.source_names, parse_shares(config.mix), parse_weights(config.uniform_sources))
    if config.delta_source == "uniform":
        sources = replace(sources, weights={})
    num_unmeasured = examples.num_unmeasured(sources.weights) if isinstance(examples, SidecarExamples) else 0
    _validate_unmeasured(config, num_unmeasured, weighting)
    facts = RunFacts(
        flags={
            **asdict(config),
            "processor_kwargs": config.processor_settings() or None,
            **vars(arguments),
            "world_size": arguments.world_size,
        },
        base=directory,
        weighting=weighting,
        score=config.resolved("score"),
        quantiles={name: str(bound) for name, bound in config.bounds().items() if isinstance(bound, Quantile)},
        num_rows=len(examples),
        num_planned=getattr(examples, "num_planned", None),
        num_unmeasured=num_unmeasured,
        skipped=examples.skipped,
        shards=examples.shards,
        sources=sources,
        num_trainable=model.num_trainable,
        quantization=model.quantization,
        unquantized=model.unquantized,
        spec=spec,
        contrast=_contrast(config),
        lr_multipliers=multipliers,
        date=date,
    )
    state = state_of(facts)
    if resume is not None:
        check_state(resume, state)
    validate_rows(examples)
    evaluation = _evaluation_examples(config, encoder, rows)
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    shape = StepShape(
        batch_size=arguments.per_device_train_batch_size,
        accumulation_steps=arguments.gradient_accumulation_steps,
        world_size=arguments.world_size,
        num_workers=arguments.dataloader_num_workers,
    )
    sampler = train_sampler(examples, shape, group_by=config.group_by, seed=seed, shares=sources.shares)
    collator = ExampleCollator(encoder=encoder, dummy=examples.blank.encoded)
    if arguments.dataloader_num_workers:
        validate_shared_memory(collator([largest_of_first(examples)]), arguments, evaluates=evaluates)
    return Plan(
        resume=resume,
        source=source,
        encoder=encoder,
        examples=examples,
        evaluation=evaluation,
        sampler=sampler,
        collator=collator,
        tokens_per_row=mean_tokens(examples),
        drift=_drift_batches(config, arguments, facts.spec, examples, collator),
        facts=facts,
        state=state,
    )


def _training_examples(config: TrainConfig, encoder: Encoder, rows: RowOptions) -> Examples:
    examples = make_dataset(
        [location(path) for path in config.data_path] or None,
        encoder,
        source_paths=config.source_path,
        image_folders=config.image_folder,
        on_missing=config.on_missing,
        streaming=config.streaming,
        shuffle_rows=config.shuffle_rows,
        crossfit=config.crossfit,
        partial=config.partial,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
        **rows,
    )
    contrast = _contrast(config)
    return examples if contrast is None else examples.contrasted(contrast)


def _evaluation_examples(config: TrainConfig, encoder: Encoder, rows: RowOptions) -> Examples | None:
    if config.eval_path is None:
        return None
    examples = make_evaluation_dataset(
        config.eval_path,
        encoder,
        image_folder=config.eval_image_folder,
        crossfit=config.crossfit,
        partial=config.partial,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
        **rows,
    )
    validate_rows(examples)
    return examples


def _drift_batches(
    config: TrainConfig, arguments: CalTrainingArguments, spec: MeasurementSpec | None, examples: Examples,
    collator: ExampleCollator,
) -> Sequence[dict[str, Any]]:  # fmt: skip
    if not config.drift_every:
        return ()
    assert spec is not None  # cached deltas always have one
    shown = examples.contrasted(spec.contrast)
    together = replace(collator, dummy=shown.blank.encoded)
    return drift_batches(shown, together, batch_size=arguments.per_device_eval_batch_size, seed=arguments.seed)


def _plan_weights(config: TrainConfig, resume: Path | None) -> tuple[DeltaSource, Weighting]:
    """The delta source and the weighting that the flags ask for; reads the data for bounds that are quantiles."""
    normalization = config.resolved("normalization")
    if config.delta_source == "uniform":
        if idle := config.without_effect():
            _log.warning("with --delta_source uniform every token weighs 1: no effect of %s", ", ".join(idle))
        return UniformWeights(), replace(UNIFORM, normalization=normalization)
    score: Score = config.resolved("score")
    bounds, rule = resolve_bounds(
        config.bounds(),
        [location(path) for path in config.data_path],
        resume,
        rule=config.rule(),
        score=score,
        crossfit=config.crossfit,
        partial=config.partial,
    )
    weighting = Weighting(
        alpha=bounds["alpha"],
        beta=bounds["beta"],
        window=config.resolved("window"),
        pool=config.resolved("pool"),
        normalization=normalization,
        map=str(rule),
    )
    if (contrast := _contrast(config)) is None:
        return CachedDeltas(score=score), weighting
    return OnlineDeltas(contrast=contrast, score=score), weighting


def _validate_unmeasured(config: TrainConfig, num_unmeasured: int, weighting: Weighting) -> None:
    """ConfigError where rows that nobody measured would weigh 0, which nobody asked for."""
    score = SCORES[config.resolved("score")]
    if num_unmeasured and weighting.alpha == 0 and config.alpha is None and (score.cached or not score.of_training):
        raise ConfigError(
            f"{num_unmeasured} rows have no measurement and weigh alpha (--on_missing uniform), which is 0 with map "
            f"{weighting.map}: they would train nothing. Give --alpha (0 if that is meant), or measure them"
        )


def _contrast(config: TrainConfig) -> ContrastSpec | None:
    return config.contrast_spec() if config.delta_source == "online" else None
