"""Declares those of transformers' flags that --help shows, or that have other defaults here; needs no transformers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from cal_pipeline.arguments import REQUIRED, flag
from cal_pipeline.transformers_source import reporters
from cal_schemas.errors import ConfigError

_REPORTERS = ("tensorboard", "trackio", "wandb")
"""Names of --report_to that are also those of the packages; the rarer ones are looked for by transformers."""


@dataclass(kw_only=True)
class TrainerFlags:
    """Transformers' names and types; their defaults too, but for the last four.

    `do_train=True`: transformers leaves it to scripts. `remove_unused_columns=False`: the batch carries more than the
    forward takes. `prediction_loss_only=True`: evaluation never keeps logits. `logging_nan_inf_filter=False`: a NaN
    loss is shown.
    """

    output_dir: str = flag(REQUIRED, "where the trained model and its checkpoints go", "output")
    save_steps: float = flag(500, "steps between two checkpoints", "output")
    report_to: str = flag(
        "none", "also show the metrics in: tensorboard, trackio, wandb, …", "output", metavar="NAME",
        choices=["none", "all", *reporters()],
    )  # fmt: skip
    logging_steps: float = flag(500, "steps between two lines of the log", "output")

    num_train_epochs: float = flag(3.0, "how often all rows are seen", "training")
    learning_rate: float = flag(5e-5, "the highest, of AdamW", "training")
    warmup_steps: float = flag(0, "steps until it is reached, or below 1 a share of all", "training")
    per_device_train_batch_size: int = flag(8, "rows on a device at once", "training")
    gradient_accumulation_steps: int = flag(1, "batches of a step", "training")
    gradient_checkpointing: bool | None = flag(
        None, "compute activations twice to keep less of them", "training", nargs="?", const=True
    )
    bf16: bool = flag(False, "compute in bfloat16", "training")

    dataloader_num_workers: int = flag(0, "processes that load and encode rows", "running")
    resume_from_checkpoint: str | None = flag(None, "checkpoint to go on from: a directory, or last", "running")

    do_train: bool = flag(True, "must stay True: cal-train trains")
    remove_unused_columns: bool = flag(False, "must stay False: batches carry deltas")
    prediction_loss_only: bool = flag(True, "evaluation returns the loss only")
    logging_nan_inf_filter: bool = flag(False, "hide NaN and infinite losses from the log")

    def validate_reporter(self) -> None:
        """Raises ConfigError where the package is missing that --report_to names."""
        if self.report_to in _REPORTERS and importlib.util.find_spec(self.report_to) is None:
            raise ConfigError(f"--report_to {self.report_to}: it is not installed: pip install {self.report_to}")
