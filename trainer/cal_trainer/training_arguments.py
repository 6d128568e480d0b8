"""Holds transformers' flags of `cal-train`, with other defaults where CAL needs them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from cal_schemas.errors import ConfigError
from cal_trainer.trainer_flags import TrainerFlags


@dataclass
class CalTrainingArguments(TrainerFlags, TrainingArguments):  # type: ignore[misc]
    """transformers' arguments, with other defaults where CAL needs them."""

    def __post_init__(self) -> None:
        # `fsdp: true` of a YAML file arrives as a word, which transformers takes for an old option.
        given: Any = self.fsdp  # type: ignore[has-type]
        if isinstance(given, str) and given.lower() in ("true", "false"):
            self.fsdp = True if given.lower() == "true" else None
        with warnings.catch_warnings():
            # Its old names are those of recipes everywhere, and work in every version that we allow.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
            try:
                super().__post_init__()
            except ValueError as error:
                on_gpu = not self.use_cpu and (self.bf16 or self.bf16_full_eval)
                if on_gpu and not is_torch_bf16_gpu_available():
                    raise ConfigError(
                        "--bf16: torch sees no GPU here that computes in bfloat16: leave it out, or add --use_cpu"
                    ) from error
                raise
        if not torch.accelerator.is_available():
            # Memory is pinned for an accelerator; without one torch only warns.
            self.dataloader_pin_memory = False
