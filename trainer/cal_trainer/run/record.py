"""What a run writes down about itself: in every checkpoint what it must not change, and a model card at its end."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from cal_pipeline.models.loading import weights_digest
from cal_schemas.spec import ContrastSpec, MeasurementSpec
from cal_trainer.config import CalTrainingArguments, TrainConfig
from cal_trainer.data.factory import Examples
from cal_trainer.objective.weighting import Weighting
from cal_trainer.run.bounds import Quantile, state_name
from cal_trainer.run.model_card import write_model_card
from cal_trainer.run.resuming import DATE_NAME, run_state

_BELONG_TO_A_RUN: Final = (
    "group_by", "streaming", "shuffle_rows", "on_missing", "max_image_pixels", "template", "image_aspect_ratio",
    "max_length", "truncation", "delta_source", "trainable", "lr_multipliers", "lora_r", "lora_alpha", "lora_dropout",
)  # fmt: skip
_OF_DELTAS: Final = ("alpha", "beta", "window", "pool")
_RESTORED_BY_THE_OPTIMIZER: Final = (
    "learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
"""A checkpoint's values would win over these in silence."""
_CARD_ARGUMENTS: Final = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs",
    "max_steps", "seed",
)  # fmt: skip


def state_of(
    config: TrainConfig,
    arguments: CalTrainingArguments,
    examples: Examples,
    weighting: Weighting,
    contrast: ContrastSpec | None,
    directory: Path,
    date: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint must remember to be resumed by the same run only.

    contrast: of online deltas; directory: of the model that training starts from; date: that the template reads.
    """
    spec: MeasurementSpec | None = getattr(examples, "spec", None)
    cached = config.delta_source == "cached"
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
        **{f"contrast {key}": value for key, value in (asdict(contrast) if contrast else {}).items()},
        # Whole checkpoints hold the model; adapters need the one that they were made for.
        DATE_NAME: date,
        "digest of the base model": weights_digest(directory) if config.lora_r else None,
    }
    exact = weighting.independent_of_the_split and not config.streaming and arguments.deepspeed_plugin is None
    return run_state(settings=settings, data=examples.shards, exact=exact)


def write_card(
    config: TrainConfig,
    arguments: CalTrainingArguments,
    examples: Examples,
    weighting: Weighting,
    contrast: ContrastSpec | None,
    **trained: Any,
) -> None:
    """The README.md of --output_dir; `trained` are arguments of `write_model_card` that are known at the end only."""
    alpha = 2 * config.lora_r if config.lora_alpha is None else config.lora_alpha
    lora = {"r": config.lora_r, "alpha": alpha, "dropout": config.lora_dropout}
    write_model_card(
        Path(arguments.output_dir),
        base_model=str(config.model_name_or_path),
        data_path=[str(path) for path in (*config.data_path, *config.source_path)],
        num_rows=len(examples),
        skipped=dict(examples.skipped),
        delta_source=config.delta_source,
        weighting=weighting,
        quantiles=_quantiles(config),
        trainable=list(config.trainable),
        spec=getattr(examples, "spec", None),
        contrast=contrast,
        lora=lora if config.lora_r else None,
        training={name: getattr(arguments, name) for name in _CARD_ARGUMENTS},
        **trained,
    )


def _quantiles(config: TrainConfig) -> dict[str, str]:
    """By bound, those that come from the data, as they were asked for."""
    return {name: str(bound) for name, bound in config.bounds().items() if isinstance(bound, Quantile)}
