"""Collates examples into the dict of a training step, and divides that into the model's inputs and the loss's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_trainer.data.alignment import Example
from cal_trainer.data.shared_memory import validate_batch_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleCollator:
    """Examples to the dict a training step takes: model inputs, and `labels`, `image_mask`, `deltas` [B, T].

    With them come `num_unusable`, an int64 scalar: rows that the dummy example stands for, and `sources` [B] int64.

    A micro-batch without an image gets the dummy sample as its last row: under data parallelism every rank then runs
    the same passes, and no parameter of the vision side is left without a gradient. Not so where an image in a
    neighbour's row would change this one's logits (special_cases.UNIFORM_SHAPE_BATCHES).
    """

    encoder: Encoder
    dummy: EncodedSample

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Pads and stacks; with perturbed images also `contrast_inputs`, their pixel inputs by name."""
        encoded = [example.encoded for example in examples]
        deltas = [example.deltas for example in examples]
        if self.encoder.uniform_shape_batches is None and not any(item.image_inputs for item in encoded):
            encoded.append(self.dummy)
            deltas.append(torch.full((self.dummy.num_tokens,), torch.nan))
        batch = collate(encoded, pad_token_id=self.encoder.pad_token_id, batch_first=self.encoder.batch_first_inputs)
        length = batch.labels.shape[1]
        padded = [torch.nn.functional.pad(item, (0, length - len(item)), value=torch.nan) for item in deltas]
        collated: dict[str, Any] = {
            **batch.inputs,
            "labels": batch.labels,
            "image_mask": batch.image_mask,
            "deltas": torch.stack(padded),
            "num_unusable": torch.tensor(sum(example.unusable for example in examples)),
            "sources": torch.tensor([example.source for example in examples] + [0] * (len(encoded) - len(examples))),
        }
        if batch.contrast_inputs:
            collated["contrast_inputs"] = batch.contrast_inputs
        validate_batch_memory(collated)
        return collated


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """One micro-batch of B rows of T padded tokens, as the loss takes it."""

    inputs: Mapping[str, Tensor]
    """What the model's forward takes."""
    labels: Tensor
    """[B, T] unshifted."""
    image_mask: Tensor
    """[B, T] bool."""
    deltas: Tensor | None = None
    """[B, T] from the annotated rows, NaN where there are none."""
    num_unusable: Tensor | None = None
    sources: Tensor | None = None
    """[B] int64: index of each row's source; None where there is one."""
    contrast_inputs: Mapping[str, Tensor] | None = None
    """Pixel inputs of the perturbed images; None when the batch carries none."""

    @classmethod
    def of(cls, collated: Mapping[str, Any]) -> Self:
        """Divides what the collator made: whatever is no field here is an input of the model."""
        own = {name: value for name, value in collated.items() if name in cls.__slots__ and name != "inputs"}
        return cls(inputs={name: value for name, value in collated.items() if name not in own}, **own)
