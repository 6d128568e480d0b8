"""`cal-train`: train a vision-language model with token weights, cached by cal-precompute or recomputed online.

Takes the flags below and all of transformers' TrainingArguments; runs alone or under `accelerate launch` / `torchrun`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from cal_pipeline.arguments import parse_configs
from cal_pipeline.encode import Encoder
from cal_pipeline.loading import (
    check_architecture,
    load_model,
    load_outline,
    load_processor,
    model_directory,
    weights_digest,
)
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.locations import location
from cal_schemas.spec import ContrastSpec, MeasurementSpec
from cal_trainer.assemble import assemble, parse_assemble
from cal_trainer.bounds import Quantile, resolve_bounds, state_name
from cal_trainer.config import CalTrainingArguments, TrainConfig, refuse_flags_without_effect
from cal_trainer.dataset import ExampleCollator
from cal_trainer.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.drift import DriftLog, drift_batches
from cal_trainer.lora import add_lora
from cal_trainer.model_card import write_model_card
from cal_trainer.opening import Examples, open_examples, refuse_unusable, train_sampler
from cal_trainer.parameters import active_dropout, parameter_groups, parse_lr_multipliers, set_trainable
from cal_trainer.resuming import check_state, find_checkpoint, run_state
from cal_trainer.sampling import SetSamplerEpoch
from cal_trainer.self_check import SelfCheck, refuse_mixed_batches
from cal_trainer.trainer import CalTrainer
from cal_trainer.weighting import UNIFORM, Weighting, check_combination

EXIT_DONE, EXIT_REFUSED = 0, 2
_BELONG_TO_A_RUN = (
    "group_by", "streaming", "shuffle_rows", "on_missing", "max_image_pixels", "template", "image_aspect_ratio",
    "max_length", "truncation", "delta_source", "trainable", "lr_multipliers", "lora_r", "lora_alpha", "lora_dropout",
)  # fmt: skip
_OF_DELTAS = ("alpha", "beta", "window", "pool")
_RESTORED_BY_THE_OPTIMIZER = ("learning_rate", "weight_decay", "optim", "adam_beta1", "adam_beta2", "adam_epsilon")
"""A checkpoint's values would win over these in silence."""
_CARD_ARGUMENTS = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "num_train_epochs",
    "max_steps",
    "seed",
)
_log = logging.getLogger("cal-train")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Console entry point; exits 0 trained, 2 refused, 130 interrupted."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """The same as an exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "datasets", "fsspec", "boto3", "botocore", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config, arguments = parse(argv)
        if config.assemble:
            assemble(**asdict(parse_assemble(config.assemble)), output=Path(arguments.output_dir), seed=arguments.seed)
        else:
            train(config, arguments)
    except CalError as error:
        print(f"cal-train: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED
    except KeyboardInterrupt:
        message = "interrupted; --resume_from_checkpoint last goes on from the last checkpoint"
        print(f"\ncal-train: {message}", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    return EXIT_DONE


def parse(argv: Sequence[str] | None = None) -> tuple[TrainConfig, CalTrainingArguments]:
    """Flags and the file of --config; a typed --data_path takes the place of the raw data that a recipe names."""
    config, arguments = parse_configs(
        [TrainConfig, CalTrainingArguments],
        argv,
        program="cal-train",
        description=__doc__ or "",
        replaces={"data_path": ("source_path", "image_folder")},
    )
    return config, arguments


def train(config: TrainConfig, arguments: CalTrainingArguments) -> CalTrainer:
    """Everything that can be checked is checked before the model is loaded; then trains, evaluates and saves.

    Raises ConfigError, FormatError or AlignmentError with one message.
    """
    resume = find_checkpoint(arguments.resume_from_checkpoint, Path(arguments.output_dir))
    bounds = resolve_bounds(config.bounds(), [Path(path) for path in config.data_path], resume)
    source, weighting = weights_of(config, **bounds)
    check_combination(source, weighting, arguments.gradient_accumulation_steps)
    refuse_flags_without_effect(arguments)
    if (config.eval_path is None) != (arguments.eval_strategy == "no"):
        raise ConfigError("--eval_path says on what to evaluate and --eval_strategy when: give both, or neither")
    if idle := config.without_effect():
        _log.warning("with --delta_source uniform every token weighs 1: no effect of %s", ", ".join(idle))
    multipliers = parse_lr_multipliers(config.lr_multipliers)
    directory = model_directory(
        str(config.model_name_or_path), config.revision, trust_remote_code=config.trust_remote_code
    )
    check_architecture(directory, trust_remote_code=config.trust_remote_code)
    processor = load_processor(directory, trust_remote_code=config.trust_remote_code)
    outline = _prepared_model(load_outline(directory, trust_remote_code=config.trust_remote_code), config)
    parameter_groups(outline, arguments.learning_rate, arguments.weight_decay, multipliers)
    encoder = Encoder(
        processor,
        template=config.template,
        image_aspect_ratio=config.image_aspect_ratio,
        max_length=config.max_length,
        truncation=config.truncation,
    )
    refuse_mixed_batches(encoder, config, arguments)
    examples = _training_examples(config, encoder)
    if contrast := online_contrast(source):
        examples = examples.contrasted(contrast)
    state = _run_state(config, arguments, examples, source, weighting, directory)
    spec: MeasurementSpec | None = getattr(examples, "spec", None)
    if resume is not None:
        check_state(resume, state)
    refuse_unusable(examples)
    evaluation = _evaluation_examples(config, encoder)
    sampler = train_sampler(
        examples,
        group_by=config.group_by,
        batch_size=arguments.per_device_train_batch_size,
        accumulation_steps=arguments.gradient_accumulation_steps,
        world_size=arguments.world_size,
        num_workers=arguments.dataloader_num_workers,
        seed=_order_seed(arguments),
    )
    model = load_model(
        directory,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device_map=None,
        trust_remote_code=config.trust_remote_code,
    )
    model = _prepared_model(model, config)
    collator = ExampleCollator(encoder=encoder, blank=examples.blank.encoded)
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
    if isinstance(source, OnlineDeltas):
        trainer.add_callback(SelfCheck(encoder, source.contrast, str(config.model_name_or_path)))
    if config.drift_every:
        assert spec is not None  # cached deltas always have one
        sizes = {"batch_size": arguments.per_device_eval_batch_size, "seed": arguments.seed}
        shown = examples.contrasted(spec.contrast)
        batches = drift_batches(shown, replace(collator, blank=shown.blank.encoded), **sizes)
        every, log = config.drift_every, trainer.log
        trainer.add_callback(DriftLog(batches, contrast=spec.contrast, weighting=weighting, every=every, log=log))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_model()
    trainer.save_state()
    num_unusable = trainer.count_unusable()
    if trainer.is_world_process_zero():
        _write_card(config, arguments, examples, source, weighting, model, multipliers, num_unusable)
    return trainer


def _training_examples(config: TrainConfig, encoder: Encoder) -> Examples:
    return open_examples(
        [location(path) for path in config.data_path] or None,
        encoder,
        source_paths=config.source_path,
        image_folders=config.image_folder,
        on_missing=config.on_missing,
        streaming=config.streaming,
        shuffle_rows=config.shuffle_rows,
        use_deltas=config.delta_source == "cached",
        max_image_pixels=config.max_image_pixels,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
    )


def _evaluation_examples(config: TrainConfig, encoder: Encoder) -> Examples | None:
    if config.eval_path is None:
        return None
    return open_examples(
        location(config.eval_path),
        encoder,
        image_folders=config.image_folder if len(config.image_folder) == 1 else (),
        use_deltas=False,
        max_image_pixels=config.max_image_pixels,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
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


def _write_card(
    config: TrainConfig,
    arguments: CalTrainingArguments,
    examples: Examples,
    source: DeltaSource,
    weighting: Weighting,
    model: Any,
    multipliers: dict[str, float],
    num_unusable: int,
) -> None:
    lora = {"r": config.lora_r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    write_model_card(
        Path(arguments.output_dir),
        base_model=str(config.model_name_or_path),
        data_path=[str(path) for path in (*config.data_path, *config.source_path)],
        num_rows=len(examples),
        skipped=dict(examples.skipped),
        num_unusable=num_unusable,
        delta_source=config.delta_source,
        weighting=weighting,
        quantiles=_quantiles(config),
        trainable=list(config.trainable),
        spec=getattr(examples, "spec", None),
        contrast=online_contrast(source),
        lora=lora if config.lora_r else None,
        lr_multipliers=multipliers or None,
        num_trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        training={name: getattr(arguments, name) for name in _CARD_ARGUMENTS},
    )


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


def online_contrast(source: DeltaSource) -> ContrastSpec | None:
    """What online deltas contrast with; None for other sources."""
    return source.contrast if isinstance(source, OnlineDeltas) else None


def _quantiles(config: TrainConfig) -> dict[str, str]:
    """By bound, those that come from the data, as they were asked for."""
    return {name: str(bound) for name, bound in config.bounds().items() if isinstance(bound, Quantile)}


def _order_seed(arguments: CalTrainingArguments) -> int:
    return int(arguments.seed if arguments.data_seed is None else arguments.data_seed)


def _run_state(
    config: TrainConfig,
    arguments: CalTrainingArguments,
    examples: Examples,
    source: DeltaSource,
    weighting: Weighting,
    directory: Path,
) -> dict[str, Any]:
    """What a checkpoint must remember to be resumed by the same run only."""
    spec: MeasurementSpec | None = getattr(examples, "spec", None)
    cached = config.delta_source == "cached"
    contrast = asdict(found) if (found := online_contrast(source)) else {}
    settings = {name: getattr(config, name) for name in _BELONG_TO_A_RUN}
    settings |= {name: getattr(arguments, name) for name in _RESTORED_BY_THE_OPTIMIZER}
    settings |= {
        "seed": arguments.seed,
        "data_seed": arguments.data_seed,
        "per_device_train_batch_size": arguments.per_device_train_batch_size,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "number of processes": arguments.world_size,
        # Workers read row groups of their own only when streaming; one worker and none are the same stream.
        "dataloader_num_workers": max(1, arguments.dataloader_num_workers) if config.streaming else None,
        "usable rows": len(examples),
        "fingerprint of the measurement": spec.fingerprint() if cached and spec else None,
        **({} if config.delta_source == "uniform" else {name: getattr(weighting, name) for name in _OF_DELTAS}),
        **{state_name(name): text for name, text in _quantiles(config).items()},
        "normalization": weighting.normalization,
        **{f"contrast {key}": value for key, value in contrast.items()},
        # Whole checkpoints hold the model; adapters need the one that they were made for.
        "digest of the base model": weights_digest(directory) if config.lora_r else None,
    }
    exact = weighting.independent_of_the_split and not config.streaming and not arguments.deepspeed
    return run_state(settings=settings, data=examples.shards, exact=exact)
