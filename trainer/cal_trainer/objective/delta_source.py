"""Answers where a training step's deltas come from: one question, three answers, so that the trainer has no branch.

Another score may take the deltas' place (`cal_schemas.scores`); NaN where unsupervised or undefined.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from cal_pipeline.measuring.conditions import check_contrast_inputs, defined_tokens
from cal_pipeline.measuring.contrast import captured_position_ids, logits_without_image
from cal_pipeline.measuring.distributions import KeptRows, after_head
from cal_schemas.errors import ConfigError
from cal_schemas.scores import DEFAULT_SCORE, OWN_NLL, SCORES, Score
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.data.collator import StepBatch
from cal_trainer.objective.label_losses import LabelLosses
from cal_trainer.objective.label_rows import at_tokens
from cal_trainer.objective.same_network import validate_determinism
from cal_trainer.objective.weighting import Weighting

Observed = Callable[[LabelLosses], Tensor]
"""Of the training forward: makes its N labels' losses and logits the deltas [B, T]."""


class DeltaSource(Protocol):
    """Deltas of a micro-batch: [B, T] float32, NaN where unsupervised or undefined."""

    reads_logits: bool
    """Whether `observing` asks for `LabelLosses.logits`."""

    def check(self, weighting: Weighting, accumulation_steps: int) -> None:
        """ConfigError for weights, or steps, that cannot be computed of these deltas, with the reason."""

    def known(self, batch: StepBatch) -> Tensor | None:
        """The deltas, from the batch alone; None where they need the training forward."""

    def observing(self, model: Any, batch: StepBatch, labels: Tensor) -> AbstractContextManager[Observed]:
        """Around the training forward, whose losses what it yields then turns into the deltas.

        Where the deltas are `known` they are looked at by nobody.

        model: the one in training, unwrapped. labels: [B, T] `Weighting.measured_labels`, N of which are supervised.
        """


def _check_known_in_time(weighting: Weighting, accumulation_steps: int, what: str) -> None:
    if accumulation_steps > 1 and weighting.normalization == "step":
        raise ConfigError(
            f"normalization 'step' divides by the weights of all micro-batches of the step, and with {what} those of "
            "the later ones are not known in time: use normalization count, micro_batch or sample, or "
            "--gradient_accumulation_steps 1, which a preset leaves free"
        )
    if accumulation_steps > 1 and weighting.normalization == "sample" and weighting.alpha == 0:
        raise ConfigError(f"normalization 'sample' counts samples with a positive sum of weights, which with {what} "
                          "and alpha = 0 is not known before the step's last micro-batch")  # fmt: skip


class _KnownDeltas(ABC):
    """Deltas that need no forward."""

    reads_logits = False

    def check(self, weighting: Weighting, accumulation_steps: int) -> None:
        """See DeltaSource."""
        if weighting.takes_all_tokens:
            raise ConfigError(
                "pool 'released' averages the deltas of unsupervised tokens too, which a cache does not hold: "
                "use it with --delta_source online, or pool span or joined"
            )

    @abstractmethod
    def known(self, batch: StepBatch) -> Tensor | None:
        """See DeltaSource."""

    def observing(self, model: Any, batch: StepBatch, labels: Tensor) -> AbstractContextManager[Observed]:
        """See DeltaSource."""
        known = self.known(batch)
        assert known is not None
        return nullcontext(lambda losses: known)


class CachedDeltas(_KnownDeltas):
    """Deltas that the reference measured, from the annotated rows.

    score: what the rows hold in their place (`RowOptions.score`), to which the model in training adds its part.
    """

    def __init__(self, *, score: Score = DEFAULT_SCORE) -> None:
        self.score, self._definition = score, SCORES[score]

    def check(self, weighting: Weighting, accumulation_steps: int) -> None:
        """See DeltaSource."""
        super().check(weighting, accumulation_steps)
        if self._definition.of_training:
            _check_known_in_time(weighting, accumulation_steps, f"score {self.score}, of the model in training,")

    def known(self, batch: StepBatch) -> Tensor | None:
        """See DeltaSource."""
        assert batch.deltas is not None, "the dataset was built without deltas"
        return None if self._definition.of_training else batch.deltas

    def observing(self, model: Any, batch: StepBatch, labels: Tensor) -> AbstractContextManager[Observed]:
        """See DeltaSource."""
        if not self._definition.of_training:
            return super().observing(model, batch, labels)
        cached = batch.deltas

        def scores(losses: LabelLosses) -> Tensor:
            own = {OWN_NLL: at_tokens(losses.nll.detach(), labels)}
            found: Tensor = self._definition.compute(dict.fromkeys(self._definition.cached, cached) | own)
            return found

        return nullcontext(scores)


class UniformWeights(_KnownDeltas):
    """The baseline: delta 1 everywhere, so that bounds of [1, 1] give weight 1."""

    def known(self, batch: StepBatch) -> Tensor:
        """See DeltaSource."""
        return torch.where(batch.labels != IGNORE_INDEX, 1.0, torch.nan)


class OnlineDeltas:
    """The model in training contrasts its own step: one more decoder pass, without gradient.

    A score that needs the whole vocabulary of both passes computes the head's full rows once more for each, in chunks;
    one of the training forward alone needs no second pass.
    """

    def __init__(self, *, contrast: ContrastSpec, score: Score = DEFAULT_SCORE) -> None:
        if OWN_NLL in SCORES[score].columns and SCORES[score].cached:
            raise ConfigError(f"score {score} compares the model in training with a reference: it needs cached deltas")
        self.contrast, self._score = contrast, SCORES[score]
        self.reads_logits = "delta_logits" in self._score.columns
        self._proved = self._score.of_training
        self._finish: Callable[[Tensor], Tensor] | None = None

    def check(self, weighting: Weighting, accumulation_steps: int) -> None:
        """See DeltaSource."""
        if weighting.takes_all_tokens and not self.reads_logits:
            raise ConfigError("pool 'released' is the authors' code, whose score is delta_logit")
        _check_known_in_time(weighting, accumulation_steps, "online deltas")

    def known(self, batch: StepBatch) -> None:
        """See DeltaSource."""
        return

    @contextmanager
    def observing(self, model: Any, batch: StepBatch, labels: Tensor) -> Iterator[Observed]:
        """See DeltaSource."""
        if self._score.of_training:
            yield lambda losses: self._score.compute({OWN_NLL: at_tokens(losses.nll.detach(), labels)})
            return
        if not self._proved:
            validate_determinism(model, batch.inputs, batch.labels)
            self._proved = True
        kept = KeptRows()
        with ExitStack() as stack:
            if not self.reads_logits:
                _validate_head(model)
                stack.enter_context(kept.keeping(model, labels))
            position_ids = stack.enter_context(captured_position_ids(model))

            def deltas(losses: LabelLosses) -> Tensor:
                (of_forward,) = position_ids
                if not self.reads_logits:
                    return self._of_rows(kept, model, batch, labels, of_forward)
                assert losses.logits is not None  # asked for by reads_logits
                return self.contrasted(at_tokens(losses.logits, labels), model, batch, labels, of_forward)

            yield deltas

    @torch.no_grad()
    def _of_rows(
        self, kept: KeptRows, model: Any, batch: StepBatch, labels: Tensor, position_ids: Tensor | None
    ) -> Tensor:
        """The score [B, T], given the rows that the training forward's head had."""
        check_contrast_inputs(self.contrast.condition, batch.inputs, batch.contrast_inputs)
        first = kept.numbers(labels)
        without = logits_without_image(
            model, batch.inputs, labels, batch.image_mask, position_ids, self.contrast, batch.contrast_inputs, kept
        )
        second = torch.where(batch.image_mask.any(-1, keepdim=True), without[1], first)
        self._finish = self._finish or after_head(model, batch.inputs, labels.max().clamp(min=0)[None])
        columns = kept.columns(model, self._finish, labels, (first, second), self._score.extra)
        mask = batch.inputs["attention_mask"]
        found: Tensor = self._score.compute(columns)
        return found.where(defined_tokens(labels, mask, batch.image_mask, self.contrast.condition), torch.nan)

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


def _validate_head(model: Any) -> None:
    """ConfigError for a head whose full rows cannot be computed beside a training step."""
    head = model.get_output_embeddings()
    if hasattr(head, "base_layer"):
        raise ConfigError("the output head has adapters, and this score reads the whole vocabulary of the plain head: "
                          "use --delta_source cached, or leave the head out of the adapters")  # fmt: skip
    if head.weight.dim() != 2 or type(head.weight.data) is not Tensor:
        raise ConfigError("the output head is sharded, and this score reads the whole vocabulary: use --delta_source "
                          "cached, or train without FSDP and ZeRO-3")  # fmt: skip
