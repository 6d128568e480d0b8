"""Says what a training on quantised weights is, and refuses what cannot be or was not tried."""

from __future__ import annotations

import os
from typing import Any

from cal_pipeline.models.quantization import check_quantization, resolve_quantization
from cal_schemas.errors import ConfigError
from cal_schemas.spec import Dtype
from cal_trainer.config import TrainConfig
from cal_trainer.training_arguments import CalTrainingArguments


def resolve_trained_on(config: TrainConfig, arguments: CalTrainingArguments, model_config: Any) -> str | None:
    """What the frozen weights are quantised to: by flag, or as the base model is stored; None for neither.

    model_config: of the base model. Raises ConfigError where that cannot train.
    """
    quantization = resolve_quantization(config.quantization, model_config)
    if quantization is None:
        return None
    check_quantization(config.quantization, arguments.device.type)
    if not config.lora_r:
        raise ConfigError(
            f"{config.model_name_or_path} is quantised as it is stored ({quantization}), and such weights cannot "
            "train, adapters on top of them can: give --lora_r (16, say), or name the model that it was made of"
        )
    sharded = {
        "FSDP": arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true",
        "DeepSpeed": arguments.deepspeed_plugin is not None,
    }
    if kind := next((kind for kind, wanted in sharded.items() if wanted), None):
        raise ConfigError(
            f"{kind} with quantised weights ({quantization}) was not tried: leave it out; several processes without it "
            "hold the quantised model each, and share the work (--multi_gpu)"
        )
    return quantization


def compute_dtype(config: TrainConfig, arguments: CalTrainingArguments) -> Dtype:
    """Of products with 4-bit weights: that of autocast, which does not reach them, else that of the weights."""
    return "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else config.dtype
