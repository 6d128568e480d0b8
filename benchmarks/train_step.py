"""Measures one training step: uniform, cached and online weights, the released way, and transformers' own Trainer.

    python benchmarks/train_step.py --shape cpu --gradient_checkpointing
    python benchmarks/train_step.py --shape llava15-7b --device cuda --dtype bfloat16 --gradient_checkpointing

A step is what the Trainer does for one batch without the optimizer, which would only dilute the ratios: denominator,
forward, backward. The variants share one model and take turns. `uniform_again` is `uniform` a second time: how far its
ratio is from 1 is the noise of this run.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainingArguments

from baselines import ReleasedTrainer
from cal_schemas.spec import ContrastSpec
from cal_trainer.objective.delta_source import CachedDeltas, OnlineDeltas, UniformWeights
from cal_trainer.trainer import UNIFORM, CalTrainer, Weighting
from measuring import count_flops, interleave, peak_memory
from reporting import add_device_flags, begin, compare, dtype_of, make_parser, suffix_of, write_report
from shapes import LabelledBatch, add_shape_flags, build_batch, build_model, shape_of

Step = Callable[[], float]
VARIANTS = ("uniform", "cached", "online_drop", "online_mask", "online_released", "trainer", "uniform_again")
RATIOS = (
    ("cached", "uniform"), ("online_drop", "uniform"), ("online_mask", "uniform"), ("online_released", "uniform"),
    ("online_drop", "online_released"), ("uniform", "trainer"), ("uniform_again", "uniform"),
)  # fmt: skip
_OWN = {"trainer": ("labels",), "online_released": ("labels", "image_mask")}
"""What of a batch's own entries these take; CAL's trainer takes all."""


def build_step(variant: str, model: Any, batch: LabelledBatch, device: str, folder: str) -> Step:
    """A function that runs one step from scratch and returns its loss."""
    options = TrainingArguments(
        output_dir=folder, use_cpu=device == "cpu", report_to=[], remove_unused_columns=False
    )  # fmt: skip
    if variant in ("trainer", "online_released"):
        trainer = (Trainer if variant == "trainer" else ReleasedTrainer)(model=model, args=options)
    else:
        source: Any = {
            "cached": CachedDeltas(),
            "online_drop": OnlineDeltas(contrast=ContrastSpec(condition="drop")),
            "online_mask": OnlineDeltas(contrast=ContrastSpec(condition="mask")),
        }.get(variant, UniformWeights())
        weighting = UNIFORM if isinstance(source, UniformWeights) else Weighting()
        trainer = CalTrainer(model=model, args=options, delta_source=source, weighting=weighting)
    own = {"labels": batch.labels, "image_mask": batch.image_mask, "deltas": batch.deltas}
    given: dict[str, Tensor] = batch.inputs | {key: own[key] for key in _OWN.get(variant, tuple(own))}
    trainer.current_gradient_accumulation_steps = 1
    # The Trainer would put the model into train mode itself, in train().
    model.train()

    def step() -> float:
        model.zero_grad()
        batches, denominator = trainer.get_batch_samples(iter([dict(given)]), 1, trainer.args.device)
        return float(trainer.training_step(model, batches[0], denominator))

    return step


def build_steps(
    variants: tuple[str, ...], model: Any, batch: LabelledBatch, flags: Namespace, folder: str
) -> dict[str, Step]:
    if flags.gradient_checkpointing:
        # The name that transformers 5.23 has for it, and the one before.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    return {variant: build_step(variant, model, batch, flags.device, folder) for variant in variants}


def main() -> None:
    parser = make_parser(__doc__)
    add_shape_flags(parser)
    add_device_flags(parser)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    flags = begin(parser)
    name, shape = shape_of(flags)
    dtype = dtype_of(flags)
    model = build_model(shape, device=flags.device, dtype=dtype)
    batch = build_batch(shape, device=flags.device, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        steps = build_steps(tuple(flags.variants), model, batch, flags, folder)
        times = interleave(steps, flags.repeats, flags.device)
        memory = {}
        for key, step in steps.items():
            model.zero_grad()
            memory[key] = peak_memory(step, flags.device)
        losses: dict[str, float] = {}
        flops = {key: count_flops(partial(_note_loss, losses, key, step)) for key, step in steps.items()}
    if {"uniform", "trainer"} <= set(losses):
        assert abs(losses["uniform"] / losses["trainer"] - 1) < 1e-2, losses
    compared = compare("step", RATIOS, times, memory, flops)
    for key, loss in losses.items():
        compared["results"][key]["loss"] = loss
    settings: dict[str, Any] = {"model": asdict(shape)}
    if flags.device == "cuda":
        tokens = shape.batch * shape.num_tokens
        settings["tokens_per_s"] = {key: tokens / times[key].median for key in steps}
    write_report(
        f"train_step-{name}{suffix_of(flags)}{'-checkpointing' if flags.gradient_checkpointing else ''}", flags,
        settings=settings, **compared,
    )  # fmt: skip


def _note_loss(losses: dict[str, float], name: str, step: Step) -> None:
    losses[name] = step()


if __name__ == "__main__":
    main()
