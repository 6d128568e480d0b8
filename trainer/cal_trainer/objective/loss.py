"""Sums the weighted loss, and says what an optimizer step divides it by, once: over all its micro-batches and ranks.

B samples of a micro-batch, T padded tokens, N supervised ones, V vocabulary. Position 0, which nothing predicts, weighs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX
from cal_schemas.weighting import Normalization
from cal_trainer.objective.weighting import Weighting

_RELEASED_EPSILON = 1e-6


def weighted_nll(logits: Tensor, label_ids: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * nll over N supervised tokens: divide once, by the summed weights of the whole optimizer step.

    Takes logits [N, V] of any float dtype that predict label_ids [N] int64, and weights [N]; returns a float32 scalar,
    0 when N is 0 (still connected to `logits`, so that every rank has a gradient). Weights [K, N] give K sums.
    """
    return (label_nll(logits, label_ids) * weights).sum(-1)


def label_nll(logits: Tensor, label_ids: Tensor) -> Tensor:
    """[N] float32: nll of label_ids [N] int64 by logits [N, V] of any float dtype."""
    return F.cross_entropy(logits.float(), label_ids, reduction="none")


def auxiliary_loss(model: Any, output: Any) -> Tensor | None:
    """What a model adds to the loss of its tokens, a scalar: the load balancing of a mixture of experts' router.

    It comes with `output_router_logits` in the config, as does its factor; None where it is off. Token weights say
    nothing of it. Raises ConfigError for one whose factor the config does not tell.
    """
    value = getattr(output, "aux_loss", None)
    if not isinstance(value, Tensor):
        return None
    factor = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    if factor is None:
        raise ConfigError(
            f"{type(model).__name__} gives an auxiliary loss, and its config no router_aux_loss_coef to multiply it "
            "with: set that, or output_router_logits to false"
        )
    return value * float(factor)


def normalized(weights: Tensor, labels: Tensor, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """Weights [B, T] as the step's sum takes them, and what the micro-batch adds to its denominator, a scalar.

    labels: [B, T] unshifted. `step` and `count` take weights as they are. The denominator of `micro_batch` is that of
    `known_denominator`, counted from labels; here a micro-batch counts where something is weighed.
    """
    if normalization == "step":
        return weights, weights.sum()
    if normalization == "count":
        return weights, (labels[:, 1:] != IGNORE_INDEX).sum().float()
    if normalization == "sample":
        sums = weights.sum(1, keepdim=True)
        return weights / sums.where(sums > 0, 1.0), (sums > 0).sum().float()
    return weights / (weights.sum() + _RELEASED_EPSILON), (weights.sum() > 0).float()


def known_denominator(
    labels: Tensor,
    deltas: Tensor | None,
    weighting: Weighting,
    weigh: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """Counts what a micro-batch adds to the step's denominator, a float scalar; None where only its forward will tell.

    Takes unshifted labels [B, T], and deltas [B, T] or None where they need the forward; `weigh` makes weights
    [B, T] of these where some sources have their own, none of which is 0 (`SourceWeights`).
    """
    supervised = labels[:, 1:] != IGNORE_INDEX
    if weighting.normalization == "micro_batch":
        # A micro-batch of padding rows, at the end of an epoch, is no micro-batch of the released code's mean.
        return supervised.any().float()
    if weighting.normalization == "count":
        return supervised.sum().float()
    if deltas is not None:
        weights = weighting(deltas, labels) if weigh is None else weigh(deltas)
        return normalized(weights, labels, weighting.normalization)[1]
    # With alpha > 0 every sample with a supervised token has a positive sum, whatever its deltas will be.
    known = weighting.normalization == "sample" and weighting.alpha > 0
    return supervised.any(1).sum().float() if known else None
