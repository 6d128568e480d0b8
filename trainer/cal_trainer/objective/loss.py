"""The weighted loss as a sum; what it is divided by is the trainer's decision."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def token_nll(logits: Tensor, label_ids: Tensor) -> Tensor:
    """[N] float32: negative log-likelihood of label_ids [N] under logits [N, V] of any float dtype."""
    return F.cross_entropy(logits.float(), label_ids, reduction="none")


def weighted_nll(logits: Tensor, label_ids: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * nll over N supervised tokens: divide once, by the summed weights of the whole optimizer step.

    Takes logits [N, V] of any float dtype that predict label_ids [N] int64, and weights [N]; returns a float32 scalar,
    0 when N is 0 (still connected to `logits`, so that every rank has a gradient).
    """
    return (token_nll(logits, label_ids) * weights).sum()
