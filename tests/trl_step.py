"""Two optimizer steps of `CalSFTTrainer`, or of `CalTrainer` on the same rows, alone or as one of several processes.

The tests import `run`; torchrun starts this file: trl_step.py MODEL ANNOTATED OUTPUT ACCUMULATION NORMALIZATION
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from trl import SFTConfig

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor, load_reference
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.dataset import AnnotatedExamples
from cal_trainer.integrations.trl import CalSFTTrainer
from cal_trainer.objective.delta_source import CachedDeltas
from cal_trainer.objective.weighting import Weighting
from cal_trainer.trainer import CalTrainer

STEPS, ROWS_PER_STEP = 2, 4
METRICS = ("loss", "mean_weight", "share_at_alpha", "share_at_beta", "unweighted_loss", "weighted_loss")


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Gradients of the first step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.gradients = self.gradients or {n: p.grad.detach().clone() for n, p in named if p.grad is not None}


def options(folder: Path, *, batch_size: int, accumulation: int) -> dict[str, Any]:
    """Training arguments that both trainers take."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",  # Adam would blow up rounding where gradients are nearly zero
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def run(
    directory: Path, annotated: Path, folder: Path, *, trl: bool, accumulation: int = 1, normalization: Any = "step",
    world_size: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """What one process saw: gradients of the first step, and of each step what was logged."""
    encoder, recorder = Encoder(load_processor(directory)), Recorder()
    examples = AnnotatedExamples(annotated, encoder, cache_dir=folder / "cache")
    given = options(folder, batch_size=ROWS_PER_STEP // world_size // accumulation, accumulation=accumulation)
    weighting = Weighting(normalization=normalization)
    trainer: Any
    if trl:
        # As in a script of TRL: its own way of loading, and its defaults, gradient checkpointing among them.
        trainer = CalSFTTrainer(
            model=str(directory),
            args=SFTConfig(max_length=None, **given),
            train_dataset=examples,
            weighting=weighting,
            callbacks=[recorder],
        )
    else:
        trainer = CalTrainer(
            model=load_reference(directory, dtype="float32").requires_grad_(True),
            args=TrainingArguments(remove_unused_columns=False, **given),
            data_collator=ExampleCollator(encoder=encoder, dummy=examples.blank.encoded),
            train_dataset=examples,
            delta_source=CachedDeltas(),
            weighting=weighting,
            callbacks=[recorder],
        )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "gradients": {name.removeprefix("module."): value for name, value in recorder.gradients.items()},
        "logged": [{name: entry[name] for name in METRICS} for entry in history],
        "columns": sorted(history[0]),
        "wrapper": type(trainer.model_wrapped).__name__,
    }


def main(directory: Path, annotated: Path, output: Path, accumulation: int, normalization: str) -> None:
    """Writes OUTPUT/<rank>.pt."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    seen = run(
        directory, annotated, output / str(rank), trl=True, accumulation=accumulation, normalization=normalization,
        world_size=world_size,
    )  # fmt: skip
    torch.save(seen, output / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
