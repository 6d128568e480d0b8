"""Holds transformers' flags of `cal-train`, with other defaults where CAL needs them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

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
            super().__post_init__()
