"""One run of cal-train, from its flags to the saved model; all that can be checked is, before the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import enable_full_determinism, set_seed
from transformers.integrations import deepspeed

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.templates import warn_of_other_templates
from cal_pipeline.measuring.positions import longest_row
from cal_pipeline.models.checkpoint import check_image_tokens, check_weights, validate_adapters
from cal_pipeline.models.loading import check_architecture, load_model, load_outline, load_processor, model_directory
from cal_schemas.errors import ConfigError
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import location
from cal_trainer.config import CalTrainingArguments, TrainConfig
from cal_trainer.data.alignment import RowOptions
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.factory import (
    Examples,
    largest_of_first,
    open_evaluation,
    open_examples,
    refuse_unusable,
    train_sampler,
)
from cal_trainer.data.sampling import SetSamplerEpoch, StepShape
from cal_trainer.data.shared_memory import refuse_small_memory
from cal_trainer.objective.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.objective.drift import DriftLog, drift_batches
from cal_trainer.objective.weighting import UNIFORM, Weighting
from cal_trainer.run.bounds import resolve_bounds
from cal_trainer.run.lora import add_lora
from cal_trainer.run.parameters import active_dropout, parameter_groups, parse_lr_multipliers, set_trainable
from cal_trainer.run.record import state_of, write_card
from cal_trainer.run.resuming import check_state, find_checkpoint, saved_date
from cal_trainer.run.self_check import SelfCheck, refuse_mixed_batches
from cal_trainer.run.validation import prepare_output, refuse_flags, refuse_optimizer
from cal_trainer.trainer import CalTrainer

_log = logging.getLogger("cal-train")


def train(config: TrainConfig, arguments: CalTrainingArguments) -> CalTrainer:
    """Everything that can be checked is checked before the model is loaded; then trains, evaluates and saves.

    Raises ConfigError, FormatError or AlignmentError with one message.
    """
    refuse_flags(arguments, evaluates=config.eval_path is not None)
    if (arguments.fp16 and config.dtype != "float32") or (arguments.bf16 and config.dtype == "float16"):
        flag = "--fp16" if arguments.fp16 else "--bf16"
        raise ConfigError(f"{flag} does not go with weights of --dtype {config.dtype}: leave one of the two out")
    resume = find_checkpoint(arguments.resume_from_checkpoint, Path(arguments.output_dir))
    bounds = resolve_bounds(
        config.bounds(), [location(path) for path in config.data_path], resume, crossfit=config.crossfit
    )
    source, weighting = weights_of(config, **bounds)
    contrast = source.contrast if isinstance(source, OnlineDeltas) else None
    source.check(weighting, arguments.gradient_accumulation_steps)
    if idle := config.without_effect():
        _log.warning("with --delta_source uniform every token weighs 1: no effect of %s", ", ".join(idle))
    multipliers = parse_lr_multipliers(config.lr_multipliers)
    directory = model_directory(
        str(config.model_name_or_path), config.revision, trust_remote_code=config.trust_remote_code
    )
    validate_adapters(directory, trains=True)
    check_architecture(directory, trust_remote_code=config.trust_remote_code)
    processor = load_processor(directory, trust_remote_code=config.trust_remote_code)
    if config.template == "auto":
        warn_of_other_templates(processor, directory)
    with _without_deepspeed():
        outline = load_outline(directory, trust_remote_code=config.trust_remote_code)
        check_weights(directory, outline)
        check_image_tokens(processor, outline)
        num_embeddings = outline.get_input_embeddings().weight.shape[0]
        outline = _prepared_model(outline, config)
    refuse_optimizer(arguments, outline)
    groups = parameter_groups(outline, arguments.learning_rate, arguments.weight_decay, multipliers)
    num_trainable = sum(parameter.numel() for group in groups for parameter in group["params"])
    encoder = Encoder(
        processor,
        template=config.template,
        image_aspect_ratio=config.image_aspect_ratio,
        max_length=longest_row(outline, config.max_length),
        truncation=config.truncation,
        date=None if resume is None else saved_date(Path(resume)),
    )
    encoder.pad_within(num_embeddings)
    refuse_mixed_batches(encoder, arguments, evaluates=config.eval_path is not None or config.drift_every > 0)
    prepare_output(str(arguments.output_dir), resumes=resume is not None)
    rows = RowOptions(
        use_deltas=config.delta_source == "cached",
        max_image_pixels=config.max_image_pixels,
        num_embeddings=num_embeddings,
    )
    examples = _training_examples(config, encoder, rows)
    if contrast:
        examples = examples.contrasted(contrast)
    spec: MeasurementSpec | None = getattr(examples, "spec", None)
    date = encoder.dated(spec.label.date).date if spec else encoder.date
    if date is not None:
        _log.info("the chat template reads the clock: in every row it is %s", date)
    state = state_of(config, arguments, examples, weighting, contrast, directory, date)
    if resume is not None:
        check_state(resume, state)
    refuse_unusable(examples)
    evaluation = _evaluation_examples(config, encoder, rows)
    if evaluation is not None:
        refuse_unusable(evaluation)
    shape = StepShape(
        batch_size=arguments.per_device_train_batch_size,
        accumulation_steps=arguments.gradient_accumulation_steps,
        world_size=arguments.world_size,
        num_workers=arguments.dataloader_num_workers,
    )
    order_seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    sampler = train_sampler(examples, shape, group_by=config.group_by, seed=order_seed)
    collator = ExampleCollator(encoder=encoder, blank=examples.blank.encoded)
    if arguments.dataloader_num_workers:
        refuse_small_memory(collator([largest_of_first(examples)]), arguments, evaluates=evaluation is not None)
    drift = None
    if config.drift_every:
        assert spec is not None  # cached deltas always have one
        shown = examples.contrasted(spec.contrast)
        together = replace(collator, blank=shown.blank.encoded)
        drift = drift_batches(shown, together, batch_size=arguments.per_device_eval_batch_size, seed=arguments.seed)
    # The trainer does this too, but only after adapters were made; all ranks make the same ones.
    enable_full_determinism(arguments.seed) if arguments.full_determinism else set_seed(arguments.seed)
    model = load_model(
        directory,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device_map=None,
        trust_remote_code=config.trust_remote_code,
    )
    model = _prepared_model(model, config)
    trainer = CalTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=evaluation,
        data_collator=collator,
        processing_class=processor,
        delta_source=source,
        weighting=weighting,
        sampler=sampler,
        lr_multipliers=multipliers,
        run_state=state,
    )
    trainer.add_callback(SetSamplerEpoch(sampler))
    if contrast:
        trainer.add_callback(SelfCheck(encoder, contrast, str(config.model_name_or_path)))
    if drift and spec:
        every, log = config.drift_every, trainer.log
        trainer.add_callback(DriftLog(drift, contrast=spec.contrast, weighting=weighting, every=every, log=log))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_model()
    trainer.save_state()
    num_unusable = trainer.count_unusable()
    if trainer.is_world_process_zero():
        write_card(
            config, arguments, examples, weighting, contrast,
            lr_multipliers=multipliers, num_trainable=num_trainable, num_unusable=num_unusable,
        )  # fmt: skip
    return trainer


@contextmanager
def _without_deepspeed() -> Iterator[None]:
    """Within it models are built as without DeepSpeed, whose ZeRO-3 would shard what has no weights yet."""
    kept, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def _training_examples(config: TrainConfig, encoder: Encoder, rows: RowOptions) -> Examples:
    return open_examples(
        [location(path) for path in config.data_path] or None,
        encoder,
        source_paths=config.source_path,
        image_folders=config.image_folder,
        on_missing=config.on_missing,
        streaming=config.streaming,
        shuffle_rows=config.shuffle_rows,
        crossfit=config.crossfit,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
        **rows,
    )


def _evaluation_examples(config: TrainConfig, encoder: Encoder, rows: RowOptions) -> Examples | None:
    if config.eval_path is None:
        return None
    return open_evaluation(
        location(config.eval_path),
        encoder,
        image_folder=config.eval_image_folder,
        crossfit=config.crossfit,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
        **rows,
    )


def _prepared_model(model: Any, config: TrainConfig) -> Any:
    """Trainable parts, or adapters; refuses online deltas where dropout would make the two passes two networks.

    Takes the model or its outline: a part that does not exist is then refused before any weight is read.
    """
    if config.lora_r:
        model = add_lora(
            model, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, trainable=config.trainable
        )
    else:
        set_trainable(model, config.trainable)
    if config.delta_source == "online" and (found := active_dropout(model)):
        raise ConfigError(
            f"online deltas need the same network in both passes, and the model has dropout ({found[0]}, …): "
            "set it to 0 in its config"
        )
    return model


def weights_of(config: TrainConfig, *, alpha: float, beta: float) -> tuple[DeltaSource, Weighting]:
    """The delta source and the weighting that the flags ask for, with the bounds as numbers."""
    normalization: Any = config.resolved("normalization")
    if config.delta_source == "uniform":
        return UniformWeights(), replace(UNIFORM, normalization=normalization)
    pool: Any = config.resolved("pool")
    weighting = Weighting(
        alpha=alpha,
        beta=beta,
        window=config.resolved("window"),
        pool=pool,
        normalization=normalization,
    )
    if config.delta_source == "online":
        return OnlineDeltas(contrast=config.contrast_spec()), weighting
    return CachedDeltas(), weighting
