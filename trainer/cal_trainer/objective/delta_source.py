"""Where a training step's deltas come from: one question, three answers, so that the trainer has no branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cal_pipeline.measuring.conditions import check_contrast_inputs, defined_tokens
from cal_pipeline.measuring.contrast import logits_without_image
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """One micro-batch as a delta source sees it."""

    model: Any
    """The model in training, unwrapped."""
    inputs: Mapping[str, Tensor]
    labels: Tensor
    """[B, T] unshifted."""
    image_mask: Tensor
    """[B, T] bool."""
    stored_deltas: Tensor | None
    """[B, T] from the annotated rows, scattered by order; None when the batch carries none."""
    contrast_inputs: Mapping[str, Tensor] | None
    """Pixel inputs of the perturbed images; None when the batch carries none."""
    position_ids: Callable[[], Tensor | None]
    """The decoder's position ids in the training forward; only after it has run."""


class DeltaSource(Protocol):
    """Deltas of a micro-batch."""

    @property
    def needs_forward(self) -> bool:
        """Whether `logits_with_image` must come from the training forward; otherwise it may be None."""

    def __call__(self, batch: StepBatch, logits_with_image: Tensor | None) -> Tensor:
        """Delta of every token, [B, T] float32, NaN where unsupervised or undefined.

        logits_with_image: [B, T], detached, from the training forward itself.
        """


class CachedDeltas:
    """What the reference measured, from the annotated rows."""

    needs_forward = False

    def __call__(self, batch: StepBatch, logits_with_image: Tensor | None) -> Tensor:
        """See DeltaSource."""
        assert batch.stored_deltas is not None, "the dataset was built without deltas"
        return batch.stored_deltas


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineDeltas:
    """The model in training contrasts its own step: one more decoder pass, without gradient."""

    contrast: ContrastSpec
    needs_forward: bool = True

    @torch.no_grad()
    def __call__(self, batch: StepBatch, logits_with_image: Tensor | None) -> Tensor:
        """See DeltaSource. The second pass runs for every batch, so that all ranks run the same passes."""
        assert logits_with_image is not None
        check_contrast_inputs(self.contrast.condition, batch.inputs, batch.contrast_inputs)
        without = logits_without_image(
            batch.model, batch.inputs, batch.labels, batch.image_mask, batch.position_ids(), self.contrast,
            batch.contrast_inputs,
        )  # fmt: skip
        deltas = torch.where(batch.image_mask.any(-1, keepdim=True), logits_with_image - without, 0.0)
        mask = batch.inputs["attention_mask"]
        defined = defined_tokens(batch.labels, mask, batch.image_mask, self.contrast.condition)
        return deltas.where(defined, torch.nan)


class UniformWeights:
    """The baseline: delta 1 everywhere, so that bounds of [1, 1] give weight 1."""

    needs_forward = False

    def __call__(self, batch: StepBatch, logits_with_image: Tensor | None) -> Tensor:
        """See DeltaSource."""
        return torch.where(batch.labels != IGNORE_INDEX, 1.0, torch.nan)
