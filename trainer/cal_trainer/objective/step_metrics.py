"""Gathers what the log says about the weights of the steps since the last log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.data.collator import StepBatch

_NUM_SUMS = 7
"""Of each source: rows, tokens, weights, tokens at either bound, nll as it is and weighted."""


class StepMetrics:
    """Sums over micro-batches, kept on the device until a log asks for them: a step waits for nothing.

    Args:
        alpha: lower bound of the weights.
        beta: upper bound.
        sources: names; where there are several, what is logged is also logged of each.
    """

    def __init__(self, *, alpha: float, beta: float, sources: Sequence[str] = ()) -> None:
        self._alpha, self._beta = alpha, beta
        self._names = tuple(sources) if len(sources) > 1 else ("",)
        self._sums: Tensor | None = None

    @property
    def pending(self) -> bool:
        """True when something was added since the last `take`."""
        return self._sums is not None

    def add(
        self,
        weights: Tensor,
        labels: Tensor,
        nll: Tensor,
        num_unusable: Tensor | None,
        auxiliary: Tensor | None = None,
        sources: Tensor | None = None,
    ) -> None:
        """One micro-batch: weights and unshifted labels [B, T], summed nll, its rows that were unusable, a scalar.

        nll: of the supervised tokens, as it is and weighted: [2], or [2, S] of S sources. auxiliary: the model's own
        loss beside it, a scalar. sources: [B] index of the source of every row, where there are several.
        """
        supervised = F.pad(labels[:, 1:] != IGNORE_INDEX, (1, 0))
        of_rows = torch.stack(
            [
                supervised.any(1).double(),
                supervised.sum(1).double(),
                weights.double().sum(1),
                (supervised & (weights <= self._alpha)).sum(1).double(),
                (supervised & (weights >= self._beta)).sum(1).double(),
            ]
        )
        of_sources = torch.cat([self.by_source(of_rows, sources), nll.double().reshape(2, -1)])
        more = [labels.new_zeros(()) if num_unusable is None else num_unusable]
        if auxiliary is not None:
            more += [auxiliary.detach(), torch.ones_like(auxiliary)]
        sums = torch.cat([of_sources.flatten(), torch.stack([value.to(of_sources) for value in more])])
        self._sums = sums if self._sums is None else self._sums + sums

    def sources_of(self, batch: StepBatch) -> Tensor:
        """[B]: index of the source of every row, 0 where there is one."""
        if len(self._names) == 1:
            return torch.zeros_like(batch.labels[:, 0])
        assert batch.sources is not None, "the batch does not say the sources of its rows"
        return batch.sources

    def by_source(self, values: Tensor, sources: Tensor | None) -> Tensor:
        """[K, S]: sums of values [K, N] by their source [N], which nobody needs to say where there is one."""
        if len(self._names) == 1:
            return values.sum(1, keepdim=True)
        assert sources is not None
        # No index_add: on CUDA it sums in an order of its own each time.
        numbers = torch.arange(len(self._names), device=values.device)
        return values[:, None].where(sources == numbers[:, None], 0.0).sum(-1)

    def take(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean weight, shares at the bounds, loss with and without weights, and unusable rows; starts anew.

        Where the model has an auxiliary loss, its mean over micro-batches too; where there are several sources, the
        same of each, and its shares of rows and of tokens.

        over_ranks: sums a tensor over all ranks, all of which call this.
        """
        assert self._sums is not None
        sums = over_ranks(self._sums).cpu()
        self._sums = None
        split = _NUM_SUMS * len(self._names)
        of_sources, (unusable, *auxiliary) = sums[:split].view(_NUM_SUMS, -1), sums[split:].tolist()
        rows, tokens, *_ = total = of_sources.sum(1).tolist()
        found = {
            **_means(total),
            "unusable_rows": unusable,
            **({"auxiliary_loss": auxiliary[0] / auxiliary[1]} if auxiliary else {}),
        }
        if len(self._names) == 1:
            return found
        for name, of_source in zip(self._names, of_sources.T.tolist(), strict=True):
            values = {"row_share": of_source[0] / max(rows, 1.0), "token_share": of_source[1] / max(tokens, 1.0)}
            if of_source[1]:  # Else it has no mean.
                values |= _means(of_source)
            found |= {f"source/{name}/{metric}": value for metric, value in values.items()}
        return found


def _means(sums: Sequence[float]) -> dict[str, float]:
    _, tokens, weight, at_alpha, at_beta, nll, weighted = sums
    tokens = max(tokens, 1.0)
    return {
        "mean_weight": weight / tokens,
        "share_at_alpha": at_alpha / tokens,
        "share_at_beta": at_beta / tokens,
        "unweighted_loss": nll / tokens,
        "weighted_loss": weighted / max(weight, 1e-12),
    }
