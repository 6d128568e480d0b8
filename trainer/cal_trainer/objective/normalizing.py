"""What the weighted sum of an optimizer step is divided by, once: over all its micro-batches and ranks.

B samples of a micro-batch, T padded tokens. Weights are 0 at position 0, which nothing predicts.
"""

from __future__ import annotations

from torch import Tensor

from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.weighting import Weighting

_RELEASED_EPSILON = 1e-6


def known_denominator(labels: Tensor, weights: Tensor | None, weighting: Weighting) -> Tensor | None:
    """What one micro-batch adds to the step's denominator, a float scalar; None where only its forward will tell.

    Takes unshifted labels [B, T], and weights [B, T] or None where they need the forward.
    """
    supervised = labels[:, 1:] != IGNORE_INDEX
    if weighting.normalization == "micro_batch":
        # A micro-batch of fillers, at the end of an epoch, is no micro-batch of the released code's mean.
        return supervised.any().float()
    if weights is not None:
        return weights.sum() if weighting.normalization == "step" else (weights.sum(1) > 0).sum().float()
    # With alpha > 0 every sample with a supervised token has a positive sum, whatever its deltas will be.
    known = weighting.normalization == "sample" and weighting.alpha > 0
    return supervised.any(1).sum().float() if known else None


def weighted_sum(nll: Tensor, weights: Tensor, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """Numerator of one micro-batch, and what it adds to the denominator: two scalars.

    Takes nll and weights [B, T]. The denominator of `micro_batch` is that of `known_denominator`, counted from labels;
    here a micro-batch counts where something is weighed.
    """
    if weighting.normalization == "step":
        return (nll * weights).sum(), weights.sum()
    if weighting.normalization == "sample":
        sums = weights.sum(1)
        means = ((nll * weights).sum(1) / sums.where(sums > 0, 1.0)).where(sums > 0, 0.0)
        return means.sum(), (sums > 0).sum().float()
    return (nll * weights).sum() / (weights.sum() + _RELEASED_EPSILON), (weights.sum() > 0).float()
