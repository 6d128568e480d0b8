"""Reads a base model's files without its weights, and chooses what of it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.templates import warn_of_other_templates
from cal_pipeline.measuring.positions import longest_row
from cal_pipeline.models.checkpoint import check_image_tokens, check_weights, validate_adapters
from cal_pipeline.models.loading import check_architecture, load_meta_model, load_processor
from cal_pipeline.models.quantization import unquantized_by_default
from cal_schemas.errors import ConfigError
from cal_trainer.config import TrainConfig
from cal_trainer.run.lora import add_lora
from cal_trainer.run.parameters import active_dropout, parameter_groups, set_trainable
from cal_trainer.run.quantized import resolve_trained_on
from cal_trainer.run.resuming import DATE_NAME, saved_settings
from cal_trainer.run.sharding import without_deepspeed
from cal_trainer.run.validation import validate_optimizer
from cal_trainer.training_arguments import CalTrainingArguments


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedModel:
    """What is known of the model in training without its weights."""

    encoder: Encoder
    num_embeddings: int
    num_trainable: int
    """Parameters."""
    quantization: str | None
    """See `resolve_trained_on`."""
    unquantized: Sequence[str]
    """Modules that --quantization leaves whole where it is more than the head: those that train in full."""


def prepare_model(model: Any, config: TrainConfig) -> Any:
    """Chooses what trains, or adds adapters, in the model or its meta-device model: mistakes show before loading."""
    if config.lora_r:
        model = add_lora(
            model, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, trainable=config.trainable
        )
    else:
        set_trainable(model, config.trainable)
    if config.delta_source == "online" and (dropout := active_dropout(model)):
        raise ConfigError(
            f"online deltas need the same network in both passes, and the model has dropout ({dropout[0]}, …): "
            "set it to 0 in its config, or --lora_dropout to 0"
        )
    return model


def plan_model(
    config: TrainConfig, arguments: CalTrainingArguments, directory: Path, multipliers: Mapping[str, float],
    resume: Path | None,
) -> PlannedModel:  # fmt: skip
    """Makes the model's encoder, and counts its embeddings and the parameters that train, without its weights.

    Refuses an --optim, --trainable, --lr_multipliers or --quantization that cannot be, too.
    """
    remote = config.trust_remote_code
    validate_adapters(directory, trains=True)
    check_architecture(directory, trust_remote_code=remote)
    settings = config.processor_settings()
    processor = load_processor(directory, kwargs=settings, backend=config.processor_backend, trust_remote_code=remote)
    if config.template == "auto":
        warn_of_other_templates(processor, directory)
    with without_deepspeed():
        meta_model = load_meta_model(directory, trust_remote_code=remote)
        check_weights(directory, meta_model)
        check_image_tokens(processor, meta_model)
        num_embeddings = meta_model.get_input_embeddings().weight.shape[0]
        quantization = resolve_trained_on(config, arguments, meta_model.config)
        by_default = [] if config.quantization == "none" else unquantized_by_default(meta_model)
        meta_model = prepare_model(meta_model, config)
    in_full = meta_model.peft_config["default"].modules_to_save if by_default else None
    validate_optimizer(arguments, meta_model)
    groups = parameter_groups(meta_model, arguments.learning_rate, arguments.weight_decay, multipliers)
    encoder = Encoder(
        processor,
        template=config.template,
        image_aspect_ratio=config.image_aspect_ratio,
        max_length=longest_row(meta_model, config.max_length),
        truncation=config.truncation,
        processor_kwargs=settings,
        date=None if resume is None else saved_settings(resume).get(DATE_NAME),
    )
    encoder.pad_within(num_embeddings)
    return PlannedModel(
        encoder=encoder,
        num_embeddings=num_embeddings,
        num_trainable=sum(item.numel() for group in groups for item in group["params"]),
        quantization=quantization,
        unquantized=[*by_default, *in_full] if in_full else (),
    )
