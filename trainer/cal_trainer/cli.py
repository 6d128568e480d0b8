"""`cal-train`: train a vision-language model with token weights, cached by cal-precompute or recomputed online.

Takes the flags below and all of transformers' TrainingArguments; runs alone or under `accelerate launch` / `torchrun`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cal_pipeline.arguments import parse_configs
from cal_pipeline.encode import IGNORE_INDEX, Encoder
from cal_pipeline.loading import check_architecture, load_model, load_processor, model_directory
from cal_pipeline.worker import EncoderSettings
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.spec import ContrastSpec, MeasurementSpec
from cal_trainer.alignment import blank_sample
from cal_trainer.assemble import assemble, parse_assemble
from cal_trainer.config import CalTrainingArguments, TrainConfig, refuse_flags_without_effect
from cal_trainer.dataset import ExampleCollator
from cal_trainer.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.drift import DriftLog
from cal_trainer.lora import add_lora
from cal_trainer.model_card import write_model_card
from cal_trainer.opening import Examples, open_examples, train_sampler
from cal_trainer.parameters import active_dropout, parse_lr_multipliers, set_trainable
from cal_trainer.sampling import SetSamplerEpoch
from cal_trainer.trainer import CalTrainer, Weighting, check_combination

EXIT_DONE, EXIT_REFUSED = 0, 2
_DRIFT_SAMPLES = 256
_PROBED_ROWS = 16
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
    for noisy in ("httpx", "urllib3", "filelock", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config, arguments = parse_configs(
            [TrainConfig, CalTrainingArguments], argv, program="cal-train", description=__doc__ or ""
        )
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


def train(config: TrainConfig, arguments: CalTrainingArguments) -> CalTrainer:
    """Everything that can be checked is checked before the model is loaded; then trains, evaluates and saves.

    Raises ConfigError, FormatError or AlignmentError with one message.
    """
    source, weighting = weights_of(config)
    check_combination(source, weighting, arguments.gradient_accumulation_steps)
    refuse_flags_without_effect(arguments)
    if (config.eval_path is None) != (arguments.eval_strategy == "no"):
        raise ConfigError("--eval_path says on what to evaluate and --eval_strategy when: give both, or neither")
    multipliers = parse_lr_multipliers(config.lr_multipliers)
    resume = _checkpoint(arguments)
    directory = model_directory(
        str(config.model_name_or_path), config.revision, trust_remote_code=config.trust_remote_code
    )
    check_architecture(directory, trust_remote_code=config.trust_remote_code)
    processor = load_processor(directory, trust_remote_code=config.trust_remote_code)
    encoder = EncoderSettings(
        template=config.template,
        image_aspect_ratio=config.image_aspect_ratio,
        max_length=config.max_length,
        truncation=config.truncation,
    ).build(processor)
    examples = _training_examples(config, encoder)
    if contrast := online_contrast(source):
        examples = examples.contrasted(contrast)
    _refuse_unusable(examples)
    evaluation = _evaluation_examples(config, encoder)
    sampler = train_sampler(
        examples,
        group_by=config.group_by,
        batch_size=arguments.per_device_train_batch_size,
        accumulation_steps=arguments.gradient_accumulation_steps,
        world_size=arguments.world_size,
        num_workers=arguments.dataloader_num_workers,
        seed=arguments.data_seed if arguments.data_seed is not None else arguments.seed,
    )
    model = load_model(
        directory,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device_map=None,
        trust_remote_code=config.trust_remote_code,
    )
    model = _prepared_model(model, config)
    collator = ExampleCollator(encoder=encoder, blank=blank_sample(encoder, online_contrast(source)))
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
    )
    trainer.add_callback(SetSamplerEpoch(sampler))
    if config.drift_every:
        _add_drift_log(trainer, config, examples, collator, weighting)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        _write_card(config, arguments, examples, source, weighting, model, multipliers)
    return trainer


def _training_examples(config: TrainConfig, encoder: Encoder) -> Examples:
    return open_examples(
        [Path(path) for path in config.data_path] or None,
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


def _refuse_unusable(examples: Examples) -> None:
    """Encodes a few rows before the model is loaded: wrong labels or a wrong image folder show at once."""
    rows = range(min(_PROBED_ROWS, len(examples)))
    if not any(bool((examples[row].encoded.labels != IGNORE_INDEX).any()) for row in rows):
        raise ConfigError(f"none of the first {len(rows)} rows can be trained on; the warnings above say why")


def _evaluation_examples(config: TrainConfig, encoder: Encoder) -> Examples | None:
    if config.eval_path is None:
        return None
    return open_examples(
        Path(config.eval_path),
        encoder,
        image_folders=config.image_folder if len(config.image_folder) == 1 else (),
        use_deltas=False,
        max_image_pixels=config.max_image_pixels,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
    )


def _prepared_model(model: Any, config: TrainConfig) -> Any:
    """Trainable parts, or adapters; refuses online deltas where dropout would make the two passes two networks."""
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


def _add_drift_log(
    trainer: CalTrainer, config: TrainConfig, examples: Examples, collator: ExampleCollator, weighting: Weighting
) -> None:
    size = trainer.args.per_device_eval_batch_size
    # Text-only rows have delta 0 in both; streamed data cannot tell without reading, and gives what comes.
    shown = np.flatnonzero(examples.has_image()) if hasattr(examples, "has_image") else np.arange(len(examples))
    chosen = np.random.default_rng(trainer.args.seed).permutation(shown)[:_DRIFT_SAMPLES]
    rows = [int(row) for row in np.sort(chosen)]
    if not rows:
        raise ConfigError("--drift_every compares deltas of rows with pictures, and this data has none")
    spec: MeasurementSpec = examples.spec  # type: ignore[union-attr]  # cached deltas always have one
    shown_twice = examples.contrasted(spec.contrast)
    batches = [collator([shown_twice[i] for i in rows[start : start + size]]) for start in range(0, len(rows), size)]
    contrast, every = spec.contrast, config.drift_every
    trainer.add_callback(DriftLog(batches, contrast=contrast, weighting=weighting, every=every, log=trainer.log))


def _write_card(
    config: TrainConfig,
    arguments: CalTrainingArguments,
    examples: Examples,
    source: DeltaSource,
    weighting: Weighting,
    model: Any,
    multipliers: dict[str, float],
) -> None:
    lora = {"r": config.lora_r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    write_model_card(
        Path(arguments.output_dir),
        base_model=str(config.model_name_or_path),
        data_path=[str(path) for path in (*config.data_path, *config.source_path)],
        num_rows=len(examples),
        skipped=dict(examples.skipped),
        delta_source=config.delta_source,
        weighting=weighting,
        trainable=list(config.trainable),
        spec=getattr(examples, "spec", None),
        contrast=online_contrast(source),
        lora=lora if config.lora_r else None,
        lr_multipliers=multipliers or None,
        num_trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        training={name: getattr(arguments, name) for name in _CARD_ARGUMENTS},
    )


def weights_of(config: TrainConfig) -> tuple[DeltaSource, Weighting]:
    """The delta source and the weighting that the flags ask for."""
    normalization: Any = config.resolved("normalization")
    if config.delta_source == "uniform":
        return UniformWeights(), Weighting(alpha=1.0, beta=1.0, window=1, normalization=normalization)
    pool: Any = config.resolved("pool")
    weighting = Weighting(
        alpha=config.alpha, beta=config.beta, window=config.window, pool=pool, normalization=normalization
    )
    if config.delta_source == "online":
        return OnlineDeltas(contrast=config.contrast_spec()), weighting
    return CachedDeltas(), weighting


def online_contrast(source: DeltaSource) -> ContrastSpec | None:
    """What online deltas contrast with; None for other sources."""
    return source.contrast if isinstance(source, OnlineDeltas) else None


def _checkpoint(arguments: CalTrainingArguments) -> str | None:
    """`--resume_from_checkpoint` as a path: `last` (or true) is the newest one in --output_dir."""
    wanted = arguments.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() in ("last", "true"):
        there = sorted(Path(arguments.output_dir).glob("checkpoint-*"), key=lambda path: -int(path.name[11:] or 0))
        for path in there:
            if not (lacking := _lacking(path)):
                return str(path)
            _log.warning("%s is passed over: it lacks %s (was the run ended while it saved?)", path, lacking)
        raise ConfigError(
            f"--resume_from_checkpoint last: no checkpoint in --output_dir {arguments.output_dir}"
            + (" is complete" if there else "")
        )
    if not Path(wanted).is_dir():
        raise ConfigError(f"--resume_from_checkpoint {wanted}: no such directory")
    if lacking := _lacking(Path(wanted)):
        raise ConfigError(f"--resume_from_checkpoint {wanted} is incomplete: it lacks {lacking}")
    return str(wanted)


def _lacking(checkpoint: Path) -> str:
    """What a checkpoint needs and has not, in words; empty when it is whole."""
    needed = {
        "trainer_state.json": ("trainer_state.json",),
        "the model": ("*.safetensors", "pytorch_model*", "global_step*"),
        "the optimizer": ("optimizer*", "global_step*"),
        "the schedule": ("scheduler.pt", "global_step*"),
    }
    return ", ".join(name for name, globs in needed.items() if not any(any(checkpoint.glob(g)) for g in globs))
