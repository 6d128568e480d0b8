"""Two optimizer steps of `CalTrainer.train()` on a tiny model, alone or as one of several processes.

The tests import `run_case`; torchrun starts this file, which runs several cases in one process group and writes what
each rank saw: python -m torch.distributed.run --standalone --nproc_per_node 2 distributed_step.py MODELS OUTPUT CASE…
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.data.alignment import Example
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.dummy import dummy_sample
from cal_trainer.objective import chunked_nll, label_losses
from cal_trainer.objective.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.trainer import UNIFORM, CalTrainer, Weighting
from tiny_models import sample_image

GLOBAL_BATCH, STEPS = 4, 2
ANSWERS = ("A red car.", "Three green circles and one yellow line on a table.", "No.", "The bus is behind the tree.")
_SOURCES: Mapping[str, DeltaSource] = {
    "uniform": UniformWeights(),
    "cached": CachedDeltas(),
    "drop": OnlineDeltas(contrast=ContrastSpec(condition="drop")),
    "mask": OnlineDeltas(contrast=ContrastSpec(condition="mask")),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is trained; how many processes share the batch of four is the launcher's business."""

    family: str = "llava"
    source: str = "cached"
    normalization: Any = "step"
    accumulation: int = 1
    text_only: frozenset[int] = frozenset()
    """Places in the batch of four. With two processes and no accumulation the first takes 0 and 1."""
    sharded: bool = False
    """FSDP2 instead of DDP."""
    trainable: str = ""
    """Part of the name of every parameter that is trained."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More training arguments."""
    chunked: bool = False
    """The loss of few tokens at a time, however few there are."""


_CHECKPOINTING = {"activation_checkpointing": True}
_SECOND_RANK_TEXT = {"text_only": frozenset({2, 3}), "options": _CHECKPOINTING}
DDP_CASES = {
    "uniform": Case(source="uniform"),
    "step": Case(),
    "step_accumulated": Case(accumulation=2),
    "sample": Case(normalization="sample"),
    "sample_accumulated": Case(normalization="sample", accumulation=2),
    "step_online": Case(source="drop"),
    "sample_online": Case(source="drop", normalization="sample"),
    "sample_online_accumulated": Case(source="drop", normalization="sample", accumulation=2),
    "chunked_online": Case(source="drop", chunked=True),
    "chunked_accumulated": Case(accumulation=2, chunked=True, options=_CHECKPOINTING),
}
TEXT_CASES = {
    "text_rank": Case(**_SECOND_RANK_TEXT),
    "text_rank_online": Case(source="drop", **_SECOND_RANK_TEXT),
    "text_rank_online_mask": Case(source="mask", normalization="sample", **_SECOND_RANK_TEXT),
    "text_rank_projector": Case(trainable="multi_modal_projector", **_SECOND_RANK_TEXT),
    # Batches of one: each rank has an image in one micro-batch and none in the next.
    "text_micro_batch": Case(accumulation=2, **_SECOND_RANK_TEXT),
}
FSDP_CASES = {
    "fsdp_uniform": Case(sharded=True, source="uniform"),
    "fsdp_cached": Case(sharded=True),
    "fsdp_cached_accumulated": Case(sharded=True, accumulation=2),
    "fsdp_online": Case(sharded=True, source="drop"),
    "fsdp_online_mask": Case(sharded=True, source="mask"),
    "fsdp_online_checkpointed": Case(sharded=True, source="drop", options=_CHECKPOINTING),
    "fsdp_tied": Case(sharded=True, source="drop", family="gemma3"),
    "fsdp_text_rank": Case(sharded=True, source="drop", text_only=frozenset({2, 3})),
    "fsdp_projector": Case(sharded=True, trainable="multi_modal_projector"),
    "fsdp_chunked": Case(sharded=True, chunked=True, options=_CHECKPOINTING),
    "fsdp_chunked_tied": Case(sharded=True, source="drop", family="gemma3", chunked=True),
}
CASES = {**DDP_CASES, **FSDP_CASES, **TEXT_CASES}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What one process saw."""

    gradients: dict[str, Tensor]
    """Of the first step, whole, as the optimizer gets them."""
    weights: dict[str, Tensor]
    """After the last step."""
    losses: list[float]
    """Of each step, as logged."""
    text_only_batches: int
    """Micro-batches that held no image but the dummy one."""
    wrapper: str
    """Class of the model that the training step called."""


def examples(encoder: Encoder, text_only: frozenset[int]) -> list[Example]:
    """Answers of different lengths, so that no two ranks and no two micro-batches have equal sums of weights."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for number in range(GLOBAL_BATCH * STEPS):
        place = number % GLOBAL_BATCH
        with_image = place not in text_only
        question = ("<image>\n" if with_image else "") + "What is in the image?"
        answer = ANSWERS[(place + number // GLOBAL_BATCH) % len(ANSWERS)]
        turns = (Turn(role="user", content=question), Turn(role="assistant", content=answer))
        sample = Sample(sample_id=str(number), images=(), messages=turns)
        encoded = encoder(sample, [sample_image(number)] if with_image else [])
        deltas = (
            torch.randn(encoded.num_tokens, generator=generator) * 4 if with_image else torch.zeros(encoded.num_tokens)
        )
        rows.append(Example(encoded=encoded, deltas=deltas.where(encoded.labels != IGNORE_INDEX, torch.nan)))
    return rows


class _Recorder(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradients:
            named = kwargs["model"].named_parameters()
            self.gradients = {name: whole(p.grad) for name, p in named if p.grad is not None}


def whole(value: Tensor) -> Tensor:
    """A copy of a tensor, or of a sharded one gathered from all ranks."""
    gather = getattr(value, "full_tensor", None)
    return (gather() if gather else value).detach().clone()


def shard_on_cpu(trainer: CalTrainer) -> None:
    """Has accelerate prepare the model with FSDP2, as `fsdp=True` does on GPUs; here it would use DDP, silently."""
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    # Without names accelerate takes the model's _no_split_modules, among them classes that it does not contain.
    layers = {type(module).__name__ for module in trainer.model.modules() if type(module).__name__.endswith("Layer")}
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=sorted(layers)
    )
    trainer.is_fsdp_enabled = True


def run_case(case: Case, models: Path, folder: Path, *, world_size: int) -> Seen:
    """Trains two steps; every rank of the group calls this. `models` holds a directory for each family."""
    above, size = (0, 4 * 400 * 3) if case.chunked else (label_losses.CHUNKED_ABOVE, chunked_nll.CHUNK_BYTES)
    with patch.object(label_losses, "CHUNKED_ABOVE", above), patch.object(chunked_nll, "CHUNK_BYTES", size):
        return _run_case(case, models, folder, world_size=world_size)


def _run_case(case: Case, models: Path, folder: Path, *, world_size: int) -> Seen:
    encoder = Encoder(load_processor(models / case.family))
    model = load_reference(models / case.family, dtype="float32")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(case.trainable in name)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=GLOBAL_BATCH // world_size // case.accumulation,
        gradient_accumulation_steps=case.accumulation,
        max_steps=STEPS,
        train_sampling_strategy="sequential",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",  # Adam would blow up rounding where gradients are nearly zero
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **case.options,
    )
    recorder = _Recorder()
    text_only_batches = 0
    collate = ExampleCollator(encoder=encoder, dummy=dummy_sample(encoder))

    def counting(given: list[Example]) -> dict[str, Tensor]:
        nonlocal text_only_batches
        text_only_batches += not any(example.encoded.image_inputs for example in given)
        return collate(given)

    trainer = CalTrainer(
        model=model,
        args=arguments,
        data_collator=counting,
        train_dataset=examples(encoder, case.text_only),
        callbacks=[recorder],
        delta_source=_SOURCES[case.source],
        weighting=UNIFORM if case.source == "uniform" else Weighting(normalization=case.normalization),
    )
    if case.sharded and world_size > 1:
        shard_on_cpu(trainer)
    trainer.train()
    return Seen(
        gradients=recorder.gradients,
        weights={name: whole(value) for name, value in trainer.model.named_parameters()},
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        text_only_batches=text_only_batches,
        wrapper=type(trainer.model_wrapped).__name__,
    )


def main(models: Path, output: Path, names: list[str]) -> None:
    """Writes OUTPUT/<case>-<rank>.pt for every case."""
    torch.set_num_threads(1)
    # A rank that waits for another in vain fails after this time.
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for name in names:
        seen = run_case(CASES[name], models, output / "trainer", world_size=world_size)
        partial = output / f"{name}-{rank}.partial"
        torch.save({key: getattr(seen, key) for key in Seen.__slots__}, partial)
        partial.rename(output / f"{name}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
