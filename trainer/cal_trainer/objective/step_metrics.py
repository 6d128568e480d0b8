"""Gathers what the log says about the weights of the steps since the last log."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cal_schemas.spec import IGNORE_INDEX


class StepMetrics:
    """Sums over micro-batches, kept on the device until a log asks for them: a step waits for nothing.

    Args:
        alpha: lower bound of the weights.
        beta: upper bound.
    """

    def __init__(self, *, alpha: float, beta: float) -> None:
        self._alpha, self._beta = alpha, beta
        self._sums: Tensor | None = None

    @property
    def pending(self) -> bool:
        """True when something was added since the last `take`."""
        return self._sums is not None

    def add(
        self, weights: Tensor, labels: Tensor, nll: Tensor, num_unusable: Tensor | None, auxiliary: Tensor | None = None
    ) -> None:
        """One micro-batch: weights and unshifted labels [B, T], summed nll [2], its rows that were unusable, a scalar.

        nll: of the supervised tokens, as it is and weighted. auxiliary: the model's own loss beside it, a scalar.
        """
        supervised = F.pad(labels[:, 1:] != IGNORE_INDEX, (1, 0))
        values = (
            supervised.sum(),
            weights.sum(),
            (supervised & (weights <= self._alpha)).sum(),
            (supervised & (weights >= self._beta)).sum(),
            *nll,
            labels.new_zeros(()) if num_unusable is None else num_unusable,
            *([] if auxiliary is None else [auxiliary.detach().to(nll), torch.ones_like(nll[0])]),
        )
        sums = torch.stack([value.double() for value in values])
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean weight, shares at the bounds, loss with and without weights, and unusable rows; starts anew.

        Where the model has an auxiliary loss, its mean over micro-batches too.

        over_ranks: sums a tensor over all ranks, all of which call this.
        """
        assert self._sums is not None
        tokens, weight, at_alpha, at_beta, nll, weighted, unusable, *auxiliary = over_ranks(self._sums).tolist()
        self._sums = None
        tokens = max(tokens, 1.0)
        return {
            "mean_weight": weight / tokens,
            "share_at_alpha": at_alpha / tokens,
            "share_at_beta": at_beta / tokens,
            "unweighted_loss": nll / tokens,
            "weighted_loss": weighted / max(weight, 1e-12),
            "unusable_rows": unusable,
            **({"auxiliary_loss": auxiliary[0] / auxiliary[1]} if auxiliary else {}),
        }
