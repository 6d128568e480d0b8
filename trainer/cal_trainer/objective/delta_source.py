"""Answers where a training step's deltas come from: one question, three answers, so that the trainer has no branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from cal_pipeline.measuring.conditions import check_contrast_inputs, defined_tokens
from cal_pipeline.measuring.contrast import captured_position_ids, logits_without_image
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.data.collator import StepBatch
from cal_trainer.objective.label_rows import at_tokens
from cal_trainer.objective.same_network import validate_determinism
from cal_trainer.objective.weighting import Weighting


class DeltaSource(Protocol):
    """Deltas of a micro-batch: [B, T] float32, NaN where unsupervised or undefined."""

    def check(self, weighting: Weighting, accumulation_steps: int) -> None:
        """ConfigError for weights, or steps, that cannot be computed of these deltas, with the reason."""

    def known(self, batch: StepBatch) -> Tensor | None:
        """The deltas, from the batch alone; None where they need the training forward."""

    def observing(self, model: Any, batch: StepBatch, labels: Tensor) -> AbstractContextManager[Callable[..., Tensor]]:
        """Around the training forward, whose label logits [N] float32 what it yields then turns into the deltas.

        Where the deltas are `known` they are looked at by nobody, and may be None.

        model: the one in training, unwrapped. labels: [B, T] `Weighting.measured_labels`, N of which are supervised.
        """


class _KnownDeltas(ABC):
    """Deltas that need no forward."""

    def check(self, weighting: Weighting, accumulation_steps: int) -> None:
        """See DeltaSource."""
        if weighting.takes_all_tokens:
            raise ConfigError(
                "pool 'released' averages the deltas of unsupervised tokens too, which a cache does not hold: "
                "use it with --delta_source online, or pool span or joined"
            )

    @abstractmethod
    def known(self, batch: StepBatch) -> Tensor:
        """See DeltaSource."""

    def observing(self, model: Any, batch: StepBatch, labels: Tensor) -> AbstractContextManager[Callable[..., Tensor]]:
        """See DeltaSource."""
        return nullcontext(lambda of_labels: self.known(batch))


class CachedDeltas(_KnownDeltas):
    """Deltas that the reference measured, from the annotated rows."""

    def known(self, batch: StepBatch) -> Tensor:
        """See DeltaSource."""
        assert batch.deltas is not None, "the dataset was built without deltas"
        return batch.deltas


class UniformWeights(_KnownDeltas):
    """The baseline: delta 1 everywhere, so that bounds of [1, 1] give weight 1."""

    def known(self, batch: StepBatch) -> Tensor:
        """See DeltaSource."""
        return torch.where(batch.labels != IGNORE_INDEX, 1.0, torch.nan)


class OnlineDeltas:
    """The model in training contrasts its own step: one more decoder pass, without gradient."""

    def __init__(self, *, contrast: ContrastSpec) -> None:
        self.contrast = contrast
        self._proved = False

    def check(self, weighting: Weighting, accumulation_steps: int) -> None:
        """See DeltaSource."""
        if accumulation_steps > 1 and weighting.normalization == "step":
            raise ConfigError(
                "normalization 'step' divides by the weights of all micro-batches of the step, and with online deltas "
                "those of the later ones are not known in time: use normalization micro_batch or sample, or "
                "--gradient_accumulation_steps 1"
            )
        if accumulation_steps > 1 and weighting.normalization == "sample" and weighting.alpha == 0:
            raise ConfigError("normalization 'sample' counts samples with a positive sum of weights, which with online "
                              "deltas and alpha = 0 is not known before the step's last micro-batch")  # fmt: skip

    def known(self, batch: StepBatch) -> None:
        """See DeltaSource."""
        return

    @contextmanager
    def observing(self, model: Any, batch: StepBatch, labels: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """See DeltaSource."""
        if not self._proved:
            validate_determinism(model, batch.inputs, batch.labels)
            self._proved = True
        with captured_position_ids(model) as position_ids:

            def deltas(of_labels: Tensor) -> Tensor:
                (of_forward,) = position_ids
                return self.contrasted(at_tokens(of_labels, labels), model, batch, labels, of_forward)

            yield deltas

    @torch.no_grad()
    def contrasted(
        self, with_image: Tensor, model: Any, batch: StepBatch, labels: Tensor, position_ids: Tensor | None
    ) -> Tensor:
        """The labels' logits [B, T] less those without the image, of a second pass.

        That runs for every batch, so that all ranks run the same passes.
        """
        check_contrast_inputs(self.contrast.condition, batch.inputs, batch.contrast_inputs)
        without = logits_without_image(
            model, batch.inputs, labels, batch.image_mask, position_ids, self.contrast, batch.contrast_inputs
        )
        deltas = torch.where(batch.image_mask.any(-1, keepdim=True), with_image - without, 0.0)
        mask = batch.inputs["attention_mask"]
        return deltas.where(defined_tokens(labels, mask, batch.image_mask, self.contrast.condition), torch.nan)
