"""Logs how far the deltas of the model in training have moved from the cached ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import TrainerCallback

from cal_pipeline.measuring.contrast import delta_logits
from cal_schemas.errors import ConfigError
from cal_schemas.ranks import spearman
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.data.collator import StepBatch
from cal_trainer.objective.weighting import Weighting

_FLIP = 0.05
_NUM_SAMPLES = 256


class DriftLog(TrainerCallback):  # type: ignore[misc]
    """Every so many steps: Spearman correlation and clamp flips of the model's own deltas against the cached ones.

    A flip is a token whose clamped delta differs by more than 0.05. All ranks measure the same batches, so that they
    run the same passes; rank 0 logs.

    Args:
        batches: of examples with cached deltas, as the collator makes them.
        contrast: of the cached measurement.
        weighting: whose bounds define the clamp.
        every: steps between two measurements; the first is before step 1.
        log: called with `{name: value}`.
    """

    def __init__(
        self,
        batches: Sequence[dict[str, Any]],
        *,
        contrast: ContrastSpec,
        weighting: Weighting,
        every: int,
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self._batches, self._contrast, self._weighting = batches, contrast, weighting
        self._every, self._log = every, log

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Before the first step."""
        self._measure(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After every `every` steps."""
        if state.global_step % self._every == 0:
            # Whatever is logged counts as the step's log, which the Trainer would then not make.
            wanted = control.should_log
            self._measure(model)
            control.should_log = wanted

    def _measure(self, model: Any) -> None:
        cached, own = [], []
        training = model.training
        model.eval()
        for batch in self._batches:
            device = next(model.parameters()).device
            placed = StepBatch.of(send_to_device(batch, device))
            assert placed.deltas is not None
            measured = delta_logits(
                model, placed.inputs, placed.labels, placed.image_mask, self._contrast, placed.contrast_inputs
            )
            shown = (placed.labels != IGNORE_INDEX) & placed.image_mask.any(-1, keepdim=True)
            compared = shown & ~placed.deltas.isnan() & ~measured.isnan()
            cached.append(placed.deltas[compared].cpu())
            own.append(measured[compared].cpu())
        model.train(training)
        one, other = torch.cat(cached).numpy(), torch.cat(own).numpy()
        bounds = (self._weighting.alpha, self._weighting.beta)
        flips = np.abs(one.clip(*bounds) - other.clip(*bounds)) > _FLIP
        self._log(
            {
                "drift_spearman": spearman(one, other),
                "drift_clamp_flips": float(flips.mean()) if len(flips) else float("nan"),
            }
        )


def drift_batches(
    examples: Any, collate: Callable[[list[Any]], dict[str, Any]], *, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """Batches of the rows that drift is measured on: a few hundred with images, drawn with the seed.

    Raises ConfigError when no row has an image: text-only rows have delta 0 in both.
    """
    # Streamed data cannot tell without reading, and gives what comes.
    shown = np.flatnonzero(examples.has_image()) if hasattr(examples, "has_image") else np.arange(len(examples))
    chosen = np.random.default_rng(seed).permutation(shown)[:_NUM_SAMPLES]
    rows = [int(row) for row in np.sort(chosen)]
    if not rows:
        raise ConfigError("--drift_every compares deltas of rows with images, and this data has none")
    return [
        collate([examples[row] for row in rows[start : start + batch_size]])
        for start in range(0, len(rows), batch_size)
    ]
