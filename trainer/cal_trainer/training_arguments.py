"""Holds transformers' flags of `cal-train`, with other defaults where CAL needs them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class CalTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """transformers' arguments, with other defaults where CAL needs them.

    `remove_unused_columns=False`: the batch carries more than the forward takes. `prediction_loss_only=True`:
    evaluation never keeps logits. `logging_nan_inf_filter=False`: a NaN loss is shown. `report_to="none"`: nothing is
    sent anywhere unless asked for.
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay False: batches carry deltas"})
    prediction_loss_only: bool = field(default=True, metadata={"help": "evaluation returns the loss only"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "hide NaN and infinite losses from the log"})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard, wandb, all, …"})

    def __post_init__(self) -> None:
        # `fsdp: true` of a YAML file arrives as a word, which transformers takes for an old option.
        given: Any = self.fsdp  # type: ignore[has-type]
        if isinstance(given, str) and given.lower() in ("true", "false"):
            self.fsdp = True if given.lower() == "true" else None
        with warnings.catch_warnings():
            # Its old names are those of recipes everywhere, and work in every version that we allow.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
            super().__post_init__()
